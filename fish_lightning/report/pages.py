"""The HTML reports' templates, in ``templates/``: pages that extend ``page.html.j2`` and load nothing."""

from collections.abc import Callable

import jinja2

from fish_lightning.names import printable_lines


def page_template(name: str, **filters: Callable[..., object]) -> jinja2.Template:
    """Load a template with autoescape and filters of its own; rendering an undefined variable is an error."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("fish_lightning.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable_lines,
    )
    templates.filters |= {"count": "{:,}".format} | filters
    return templates.get_template(name)


def _printable_lines(value: object) -> object:
    """Escape what a browser cannot show in names, and leave other values and markup as they are."""
    return printable_lines(value) if type(value) is str else value
