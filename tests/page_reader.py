"""What the tests of pages share: a page, read as elements and words."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The elements of a page in order, as (tag, attributes), and its text; tags that do not match are an error."""

    VOID = ("br", "img", "meta")

    def __init__(self, html):
        super().__init__()
        self.html, self.elements, self.words, self.open = html, [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words += data.split()

    @property
    def text(self):
        return " ".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, label):
        """The one table of that name."""
        (table,) = re.findall(rf'<table[^>]*aria-label="{label}".*?</table>', self.html, re.DOTALL)
        return Page(table)

    def row(self, head):
        """The cells of the one table row that begins with `head`."""
        rows = [Page(row).words for row in re.findall(r"<tr[^>]*>.*?</tr>", self.html, re.DOTALL)]
        (words,) = [words for words in rows if words[: len(head.split())] == head.split()]
        return words[len(head.split()) :]
