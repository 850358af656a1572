"""Self-contained HTML pages: templates, and figures inside them."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure


def render(package: str, template: str, **values: Any) -> str:
    """The page that a template of a package makes of `values`; they are escaped."""
    environment = Environment(loader=PackageLoader(package, "."), autoescape=True)
    return environment.get_template(template).render(**values)


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def embedded(figure: Figure, dpi: int = 110) -> str:
    """A figure as an address, for `src`."""
    return data_uri(png(figure, dpi))


def embedded_photo(figure: Figure, dpi: int) -> str:
    """A figure that is mostly a photograph, as an address: a fifth of the size of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": 80})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def data_uri(image: bytes) -> str:
    """The content of a PNG file as an address, for `src`."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
