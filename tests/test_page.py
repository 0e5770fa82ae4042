"""The page as a browser shows it, and what may run in it."""

import base64
import hashlib
import json
import re

import pytest
from browser import browser  # noqa: F401
from groundup import page, report
from invented import HOSTILE, add_rung, result, write_run
from test_diagnostics import CHECKED, GATE, ppo_log

CSS = (page.HERE / "report.css").read_text()
PALETTE = dict(re.findall(r"--(\w+): (light-dark\(#\w{6}, #\w{6}\))", CSS))


# What may run ----------------------------------------------------------------------------------------------------------


def test_the_policy_lets_exactly_the_script_run():
    digest = base64.b64encode(hashlib.sha256(b"\nalert()\n").digest()).decode()
    policy = page.policy("\nalert()\n")
    assert policy.startswith("default-src 'none'; ") and re.findall(r"script-src [^;]*", policy) == [
        f"script-src 'sha256-{digest}'"
    ]


def test_the_script_makes_no_html_of_text():
    script = (page.HERE / "report.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval|Function\(|setTimeout\(\"", script)
    assert "\t" not in script  # render() shows control characters as pictures, and the hash would be another


# Colours ---------------------------------------------------------------------------------------------------------------


def rgb(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_as_wcag_defines_it():
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(scheme):
    colours = {name: rgb(re.findall(r"#\w{6}", value)[scheme]) for name, value in PALETTE.items()}
    assert len(colours) == 12
    for name in ("ink", "soft", "accent", "second", "third", "fourth", "gain", "loss"):
        for behind in ("page", "card"):
            assert contrast(colours[name], colours[behind]) >= 4.5, f"{name} on {behind}"  # AA, text
    assert contrast(colours["card"], colours["accent"]) >= 4.5  # the word "best"
    assert (
        contrast(colours["ink"], colours["accent"]) >= 1.5 and contrast(colours["ink"], colours["track"]) >= 3
    )  # intervals on a bar
    full = [0.3 * a + 0.7 * b for a, b in zip(colours["accent"], colours["card"], strict=True)]  # the fullest cell of .levels
    assert contrast(colours["ink"], full) >= 4.5


# In a browser ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Long logs, long replies, a failed rung, one never evaluated, logs with NaN, what a model wrote to do harm."""
    run = write_run(tmp_path_factory.mktemp("big") / "nano")
    long = [{"step": s, "loss": 5 / s, "grad_norm": 1.0 + s % 7, "eval_loss": 6 / s} for s in range(1, 5001)]
    long[77]["loss"] = float("nan")
    asked = [{"kind": "fact", "prompt": f"{n}: " + "Where does Mira live? " * 90, "reply": HOSTILE * 40} for n in range(12)]
    for n in range(6):
        add_rung(
            run, f"sft_{n}", {"cloze": result(0.6)}, long, asked, started=f"2026-02-0{n + 1}", command=f"recipes/sft.py --seed {n}"
        )
        log = ppo_log(2000, **{f"rewards/{HOSTILE}/mean": 0.5})
        config = {"num_generations": 8, "rewards": CHECKED}
        measured = {"cloze": result(1.0) | {"contaminated": n / 6}}
        add_rung(run, f"ppo_{n}", measured, log, asked, config=config, parent={"path": f"out/nano/sft_{n}"})
    add_rung(run, "failed", None, [{"step": 1, "loss": float("nan")}], status="failed", command=f"python {HOSTILE}")
    (run / "grpo" / "gate.json").write_text(json.dumps(GATE))
    return report.write_report(run)


def test_a_big_run_makes_a_page_that_can_be_sent(big):
    assert 500_000 < big.stat().st_size < 2_000_000


SIZES = [(390, 844), (1280, 900)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES, ids=["phone", "desktop"])
def test_the_page_fits_and_nothing_goes_wrong(browser, big, width, height, scheme):  # noqa: F811
    browser.resize(width, height, scheme)
    browser.open(big.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    # Nothing sticks out but what scrolls in its own place.
    outside = "!e.closest('.wide, pre, .unseen') && e.getBoundingClientRect().right > innerWidth + 1"
    outside = f"[...document.querySelectorAll('main *')].filter(e => {outside})"
    assert browser.evaluate(f"{outside}.map(e => e.outerHTML.slice(0, 100))") == []
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(246, 246, 243)" if scheme == "light" else "rgb(18, 20, 23)"
    )
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 1
    assert browser.errors == []


def test_what_a_model_wrote_does_not_run_even_if_it_were_not_escaped(browser, tmp_path):  # noqa: F811
    path = report.write_report(write_run(tmp_path / "nano"))
    text = path.read_text()
    harm = "<script>window.harmed = 1</script><b onclick='window.harmed = 2' id='harm'>x</b><img src=x onerror='window.harmed = 3'>"
    path.write_text(text.replace("Replies as the models wrote them.", harm))
    browser.open(path.as_uri())
    browser.click("#harm")
    assert browser.evaluate("[typeof window.harmed, document.documentElement.className]") == ["undefined", "js"]
    assert any("Content Security Policy" in error for error in browser.errors)


@pytest.fixture
def shown(browser, tmp_path):  # noqa: F811
    browser.resize(1280, 900)
    browser.open(report.write_report(write_run(tmp_path / "nano")).as_uri())
    yield browser
    assert browser.errors == []


def test_curves_answer_to_the_keyboard(shown):
    shown.evaluate("document.querySelector('figure.chart svg').focus()")
    told = "document.activeElement.ariaValueText"
    assert shown.evaluate("document.activeElement.getAttribute('role')") == "slider"
    shown.press("End")
    assert shown.evaluate(told) == "step 100: training 0.05, mean 0.05051; held-out 1.5"
    shown.press("ArrowLeft")
    assert shown.evaluate(told).startswith("step 99: training 0.05051")
    shown.press("Home")
    assert shown.evaluate(told) == "step 1: training 5"
    shown.press("ArrowRight")
    assert shown.evaluate(told).startswith("step 2: training 2.5")
    assert shown.evaluate("document.querySelector('figure.chart .read').textContent").startswith("step 2training 2.5")
    assert shown.evaluate("document.querySelectorAll('figure.chart .cursor').length") == 1
    shown.press("Escape")
    assert shown.evaluate("document.querySelectorAll('.cursor').length") == 0


def test_curves_answer_to_the_pointer(shown):
    shown.evaluate("document.querySelector('figure.chart svg').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = shown.evaluate(
        "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('figure.chart svg').getBoundingClientRect())"
    )
    shown.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] / 2, y=box[1] + box[3] / 2)
    assert re.match(r"step [45]\d", shown.evaluate("document.querySelector('figure.chart .read').textContent"))


def paths(page):
    return page.evaluate("[...document.querySelectorAll('figure.chart polyline')].map(line => line.getAttribute('points'))")


def test_the_script_draws_what_the_page_came_with(shown):
    """Python draws it first, JavaScript again on every change: the same numbers on the same scales."""
    before = [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in paths(shown)]
    assert len(before) == 6
    texts = "[...document.querySelectorAll('figure.chart svg text')].map(text => text.textContent)"
    labels = shown.evaluate(texts)
    shown.evaluate("for (const { curves } of charts) curves.draw()")
    after = [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in paths(shown)]
    for one, other in zip(before, after, strict=True):
        assert [x for point in one for x in point] == pytest.approx([x for point in other for x in point], abs=0.2)
    assert shown.evaluate(texts) == labels


def test_a_series_can_be_left_out_but_not_the_last(shown):
    keys = "document.querySelectorAll('figure.chart button.key')"
    assert shown.evaluate(f"{keys}[1].textContent + {keys}[1].ariaPressed") == "held-outtrue"
    before = len(paths(shown))
    shown.evaluate(f"{keys}[1].click()")
    assert len(paths(shown)) == before - 1 and shown.evaluate(f"{keys}[1].ariaPressed") == "false"
    shown.evaluate(f"{keys}[0].click()")
    assert len(paths(shown)) == before - 1
    shown.evaluate(f"{keys}[1].click()")
    assert len(paths(shown)) == before


def test_logarithms_and_rungs_together(browser, tmp_path):  # noqa: F811
    run = write_run(tmp_path / "nano")
    add_rung(run, "sft", history=[{"step": s, "loss": 100 / s} for s in (10, 100, 1000)])
    browser.resize(1280, 900)
    browser.open(report.write_report(run).as_uri())
    assert browser.evaluate("[...document.querySelectorAll('.together option')].map(o => o.text).join()") == "Loss"
    assert (
        browser.evaluate("[...document.querySelectorAll('.together .key')].map(k => k.textContent).join()")
        == "pretrain, training,sft,pretrain, held-out"
    )
    assert browser.evaluate("document.querySelectorAll('.together polyline').length") == 2  # what is held out is off at first
    browser.evaluate("document.querySelector('.together svg').focus()")
    browser.press("End")
    assert browser.evaluate("document.activeElement.ariaValueText") == "100 %: pretrain, training 0.05, mean 0.05051; sft 0.1"
    logarithms = (
        "[...document.querySelectorAll('.tools label')].find(label => label.textContent === 'Logarithmic scale').firstChild.click()"
    )
    browser.evaluate(logarithms)
    ticks = "[...document.querySelectorAll('figure[data-rung=sft] text[text-anchor=end]')].map(text => text.textContent)"
    assert browser.evaluate(ticks) == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "step, logarithmic"]
    assert browser.errors == []


def test_the_page_is_whole_without_script(browser, tmp_path):  # noqa: F811
    path = report.write_report(write_run(tmp_path / "nano"))
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.resize(390, 844)
    browser.open(path.as_uri())
    assert browser.evaluate("document.documentElement.className") == ""
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.evaluate("document.querySelectorAll('button, select, input').length") == 0  # nothing that would not answer
    assert len(paths(browser)) == 6 and browser.evaluate("document.querySelectorAll('figure.chart table').length") == 4
    assert browser.evaluate("document.querySelector('pre.command').innerText") == "python recipes/pretrain.py --config a.yaml"
    assert browser.errors == []


def test_the_page_can_be_heard_and_reached(shown):
    levels = shown.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    counts = "['main', 'body > header', 'footer', 'nav[aria-label]'].map(which => document.querySelectorAll(which).length)"
    assert shown.evaluate(counts) == [1, 1, 1, 1]
    assert (
        shown.evaluate(
            "[...document.querySelectorAll('table')].filter(t => !t.caption || t.querySelector('th:not([scope])')).length"
        )
        == 0
    )
    assert shown.evaluate("[...document.querySelectorAll('a')].filter(a => !document.getElementById(a.hash.slice(1))).length") == 0
    ids = shown.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    shown.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert shown.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    shown.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "main"
    named = "e.ariaLabel || e.textContent.trim() || e.labels?.length"
    unnamed = f"[...document.querySelectorAll('svg, button, select, input, [role=region]')].filter(e => !({named})).length"
    assert shown.evaluate(unnamed) == 0
    shown.press("Tab")
    assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_colours_by_hand(shown):
    background = "getComputedStyle(document.body).backgroundColor"
    assert shown.evaluate("document.querySelector('.scheme').textContent") == "Dark"
    shown.click(".scheme")
    assert (
        shown.evaluate(background) == "rgb(18, 20, 23)"
        and shown.evaluate("document.querySelector('.scheme').textContent") == "Light"
    )
    shown.reload()
    assert shown.evaluate(background) == "rgb(18, 20, 23)"  # remembered
    shown.click(".scheme")
    assert shown.evaluate(background) == "rgb(246, 246, 243)"


def test_a_command_is_copied(shown):
    shown.evaluate("document.querySelector('.commands button').focus()")
    shown.press("Enter")  # no script may copy but at a person's wish
    shown.wait("document.querySelector('.commands button').textContent !== 'Copy'")
    assert shown.evaluate("getSelection().toString()") == "python recipes/pretrain.py --config a.yaml"
    assert shown.evaluate("document.querySelector('.commands button').textContent") == "Copied"
