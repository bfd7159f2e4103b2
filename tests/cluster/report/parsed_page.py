"""Pages of reports, drawn and parsed."""

from html.parser import HTMLParser

from pimserve.cluster.report.report import write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Parsed(HTMLParser):
    """What a page holds: its text, attributes by tag, ids, and that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.ids, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(places, tmp_path, **options):
    places = places if isinstance(places, list) else [places]
    out = write_report(places, tmp_path / "out.html", force=True, **options)
    text = out.read_text(encoding="utf-8")
    return text, Parsed(text)
