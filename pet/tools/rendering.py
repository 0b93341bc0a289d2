"""Documents that pet writes for people, from the templates in `templates/`. Knows nothing of what is in them."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **content: Any) -> str:
    """A template filled in; in HTML every text is escaped.

    Args:
        template: name of a file in `templates/`.
        content: what the template names, values and functions.
    """
    environment = Environment(
        loader=PackageLoader("pet.tools"),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["paragraph"] = paragraph
    return environment.get_template(template).render(content)


def paragraph(text: str) -> str:
    """A text on one line, with an empty line before it; nothing of an empty one."""
    joined = " ".join(text.split())
    return f"\n{joined}\n" if joined else ""
