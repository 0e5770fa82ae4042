"""How a page that people share is written: one file, everything in it escaped, and no script but ours can run."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from groundup import record
from groundup.words import markdown_cell, show_count, show_seconds
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

HERE = Path(__file__).parent


def render(template: str, **words: Any) -> str:
    """A template beside this file as text. An HTML template extends `page.html.j2`, which holds `report.css` and `report.js`.

    All text in a page is escaped unless it is Markup; the Markdown escapes what could break its tables (`cell`).
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"seconds": show_seconds, "count": show_count, "yaml": record.as_yaml, "cell": markdown_cell}
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    words |= {"style": Markup(style), "script": Markup(script), "policy": policy(f"\n{script}")}
    # Control characters are shown as pictures: they are the model's words too, and must not act.
    pictures = {code: chr(0x2400 + code) for code in range(32) if chr(code) != "\n"} | {0x7F: "\u2421"}
    return environment.get_template(template).render(words).translate(pictures)


def policy(script: str) -> str:
    """The content security policy of a page whose one script element holds exactly `script`."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = ("default-src 'none'", f"script-src 'sha256-{digest}'", "style-src 'unsafe-inline'", "base-uri 'none'")
    return "; ".join((*parts, "form-action 'none'"))
