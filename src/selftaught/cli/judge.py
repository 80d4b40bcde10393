"""How good a judge is, on labelled comparisons."""

from pathlib import Path

from selftaught.cli.command import add_command, add_model, model_spec, open_lab
from selftaught.config import override
from selftaught.specs import Sampling


def add_commands(commands) -> None:
    """Add the command of this module to a parser's subparsers."""
    parser = add_command(
        commands,
        "judge",
        _judge,
        "measure a judge on labelled pairs, shown in both orders: agreement, flip rate, accuracy",
        takes_fields=True,
        example="selftaught judge llmbar.jsonl --model ./my-model --rubric instruction_following --max_tokens 512",
    )
    parser.add_argument(
        "data", type=Path, help="rows of prompt, chosen and rejected, or of LLMBar's input, output_1, output_2, label"
    )
    add_model(parser)
    parser.add_argument(
        "--rubric", default="better", help="better (default), instruction_following, helpfulness, a .yaml or .txt file"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/judge"))
    parser.add_argument("--limit", type=int)


def _judge(arguments) -> None:
    from selftaught.judging import judge_file
    from selftaught.report.text import columns
    from selftaught.scorers.judges import Judge

    sampling = override(Sampling(temperature=0.0, max_tokens=1024), arguments.overrides)
    by = Judge(model=model_spec(arguments), rubric=arguments.rubric, sampling=sampling)
    with open_lab(arguments.out, arguments) as lab:
        judged, reports = judge_file(lab, arguments.data, by, limit=arguments.limit)
    rows = [("metric", "mean", "stderr", "n", "unscored")]
    rows += [(r.name, f"{r.mean:.4f}", f"{r.stderr:.4f}", str(r.n), str(r.unscored)) for r in reports.values()]
    print("\n".join(columns(rows, right=frozenset(range(1, 5)))))
    print(f"\n{len(judged)} comparisons; the judge's texts: {arguments.out / 'stages'}")
