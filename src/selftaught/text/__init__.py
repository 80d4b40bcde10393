"""Pure strings: templates, answers, steps."""
