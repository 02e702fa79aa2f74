from tensorboard.plugin_util import markdown_to_safe_html

from lab.training.answers import as_markdown


def test_samples_are_shown_letter_by_letter_whatever_is_in_them():
    prompt, text = "<|endoftext|>Question: 2 * 3 * 4?\n\nAnswer:\n", "# no *heading*\n\n| no | table |\n"
    html = markdown_to_safe_html(as_markdown([(prompt, text), ("second", "")]))
    assert "&lt;|endoftext|&gt;Question: 2 * 3 * 4?\n\nAnswer:" in html
    assert "# no *heading*\n\n| no | table |" in html
    assert html.count("<code>") >= 3
    assert "prompt 2" in html
