"""The site's one peculiarity: docstrings name things as Sphinx does, ``:class:`X```, and Markdown would print that."""

import re


def on_page_content(html: str, **_: object) -> str:
    """The name alone, as code, without the packages before it where a tilde asks for that."""
    return re.sub(r":(?:class|func|meth|data|attr|mod):<code>~?([^<]+)</code>", r"<code>\1</code>", html)
