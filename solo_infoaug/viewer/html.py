"""Self-contained HTML pages: templates, and figures inside them."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure


def render(package: str, template: str, **values: Any) -> str:
    """Render a template of a package with `values`, which are escaped."""
    environment = Environment(loader=PackageLoader(package, "."), autoescape=True)
    return environment.get_template(template).render(**values)


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as the content of a PNG file."""
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=dpi)
    return buffer.getvalue()


def embedded(figure: Figure, dpi: int = 110) -> str:
    """A figure as a data URL, for `src`."""
    return data_uri(png(figure, dpi))


def embedded_photo(figure: Figure, dpi: int) -> str:
    """A figure that is mostly a photograph, as a data URL of a fifth of a PNG's size."""
    figure.savefig(buffer := io.BytesIO(), format="jpeg", dpi=dpi, pil_kwargs={"quality": 80})
    return data_uri(buffer.getvalue(), "jpeg")


def data_uri(image: bytes, kind: str = "png") -> str:
    """The content of an image file as a data URL, for `src`."""
    return f"data:image/{kind};base64," + base64.b64encode(image).decode("ascii")
