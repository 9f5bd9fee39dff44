"""The HTML reports' templates, in ``templates/``: pages that extend ``page.html.j2`` and load nothing."""

import jinja2


def page_template(name: str) -> jinja2.Template:
    """Load a template with autoescape; an undefined variable is an error when it is rendered."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("fish_lightning.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["count"] = "{:,}".format
    return templates.get_template(name)
