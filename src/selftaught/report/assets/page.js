"use strict";
(() => {
  const { groups } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const list = at("list"), detail = at("detail"), found = at("found");
  const query = at("query"), stage = at("stage"), outcome = at("outcome");
  let shown = [], open = null;

  // Text of models goes through textContent only, so that none of it can become markup.
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined && text !== null) node.textContent = String(text);
    return node;
  };
  const plain = (value) => String(Number.isInteger(value) ? value : Number(value.toPrecision(3)));

  groups.forEach((group) => {
    const texts = [...group.prompt.map((m) => m.text), group.gold ?? "", group.id];
    group.completions.forEach((c) => texts.push(c.text, c.answer ?? ""));
    group.words = texts.join("\n").toLowerCase();
    group.gist = group.prompt.length ? group.prompt[group.prompt.length - 1].text.replace(/\s+/g, " ") : "";
  });
  [...new Set(groups.map((g) => g.stage))].forEach((name) => {
    const option = make("option", "", name);
    option.value = name;
    stage.append(option);
  });

  const matches = (group) =>
    (!stage.value || group.stage === stage.value) &&
    (!outcome.value || group.kept === (outcome.value === "kept")) &&
    group.words.includes(query.value.trim().toLowerCase());

  function filter() {
    shown = groups.filter(matches);
    found.textContent = `${shown.length} of ${groups.length}`;
    list.replaceChildren(...shown.map(row));
    show(shown.includes(open) ? open : shown[0] ?? null);
  }

  function row(group) {
    const item = make("li");
    const button = make("button");
    button.type = "button";
    const top = group.tally[0];
    const votes = top ? `top answer ${plain(top.votes)} vote${top.votes === 1 ? "" : "s"}` : "no answer";
    const state = group.kept ? `used, weight ${plain(group.weight ?? 1)}` : "dropped";
    button.append(
      make("span", "gist", group.gist.slice(0, 140) || "(empty prompt)"),
      make("span", group.kept ? "state kept" : "state", state),
      make("span", "state", votes),
    );
    button.addEventListener("click", () => show(group));
    item.append(button);
    return item;
  }

  function show(group) {
    open = group;
    shown.forEach((g, i) => {
      const button = list.children[i].firstChild;
      if (g === group) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
    detail.replaceChildren(...(group ? describe(group) : [make("p", "empty", "No prompt matches.")]));
  }

  function describe(group) {
    const parts = [make("p", "where", `${group.stage} · ${group.id}`)];
    group.prompt.forEach((message) => {
      if (group.prompt.length > 1) parts.push(make("p", "role", message.role));
      parts.push(make("pre", "prompt", message.text));
    });
    const facts = make("dl", "facts");
    const fact = (name, value) => {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      facts.append(pair);
    };
    if (group.gold !== null) fact("Gold answer", group.gold);
    fact("Outcome", group.kept ? "used for training" : "dropped");
    if (group.weight !== null) fact("Weight", plain(group.weight));
    parts.push(facts);
    if (group.tally.length) parts.push(tally(group));
    const order = ["chosen", "good", "rejected", "bad"];
    const rank = (c) => (c.roles.length ? order.indexOf(c.roles[0]) : order.length);
    [...group.completions].sort((a, b) => rank(a) - rank(b) || a.k - b.k).forEach((c) => parts.push(completion(c, group)));
    return parts;
  }

  function tally(group) {
    const table = make("table", "tally");
    const caption = make("caption", "", "Votes");
    const body = make("tbody");
    const most = Math.max(1, ...group.tally.map((t) => t.votes));
    group.tally.forEach(({ answer, votes }) => {
      const line = make("tr");
      const bar = make("meter");
      bar.max = most;
      bar.value = votes;
      bar.setAttribute("aria-hidden", "true");
      const name = make("th", "", answer);
      name.scope = "row";
      if (answer === group.gold) name.append(make("span", "tag good", "gold"));
      const cell = make("td");
      cell.append(bar);
      line.append(name, cell, make("td", "right", plain(votes)));
      body.append(line);
    });
    table.append(caption, body);
    return table;
  }

  function completion(c, group) {
    const box = make("section", `completion ${c.roles.join(" ")}`);
    const head = make("header");
    c.roles.forEach((role) => head.append(make("span", `tag ${role}`, role)));
    head.append(make("span", "", `sample ${c.k}`));
    if (c.answer !== null) head.append(make("span", "", `answer ${c.answer}`));
    if (c.answer !== null && c.answer === group.gold) head.append(make("span", "tag good", "gold"));
    if (c.unanswered !== null) head.append(make("span", "", `no vote: ${c.unanswered}`));
    if (c.votes !== null) head.append(make("span", "", `${plain(c.votes)} vote${c.votes === 1 ? "" : "s"}`));
    c.scores.forEach((s) => {
      const value = s.value === null ? "unscored" : plain(s.value);
      head.append(make("span", "", `${s.scorer} ${value}${s.note ? ` (${s.note})` : ""}`));
    });
    if (c.tokens !== null) head.append(make("span", "faint", `${c.tokens} tokens, ${c.finish}`));
    box.append(head, make("pre", "", c.text));
    return box;
  }

  list.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const here = [...list.children].findIndex((item) => item.firstChild === document.activeElement);
    const next = move && list.children[here + move];
    if (!next) return;
    event.preventDefault();
    next.firstChild.focus();
    show(shown[here + move]);
  });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("input", filter);
  [stage, outcome].forEach((control) => control.addEventListener("change", filter));
  at("filters").hidden = at("browser").hidden = false;
  filter();
})();
