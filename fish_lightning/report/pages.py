"""The HTML reports: pages of the templates in ``templates/``, which extend ``page.html.j2`` and load nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2

from fish_lightning.files import write_text
from fish_lightning.names import printable_lines


def write_page(
    file: Path, template: str, filters: Mapping[str, Callable[..., object]] | None = None, **context: object
) -> None:
    """Render a template to a file, atomically, with autoescape; rendering an undefined variable is an error.

    Args:
        file: file to write.
        template: name of the template.
        filters: filters of the template, besides ``count``.
        context: variables of the template.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("fish_lightning.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable_lines,
    )
    templates.filters |= {"count": "{:,}".format} | dict(filters or {})
    write_text(file, templates.get_template(template).render(context))


def _printable_lines(value: object) -> object:
    """Escape what a browser cannot show in names, and leave other values and markup as they are."""
    return printable_lines(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
