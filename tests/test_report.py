"""The page asks nothing from outside and shows what it was given; pictures hold the numbers they were drawn from."""

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from elucidiff import report
from elucidiff.errors import MissingExtraError
from elucidiff.report import Page, pictures

SIGNATURE = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """What a browser sees: tags with attributes, the text of each, and whether every tag was closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def png(width=8, height=8, **options):
    content = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(content, "PNG", **options)
    return content.getvalue()


def decoded(content):
    assert content.startswith(SIGNATURE)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture
def drawn(monkeypatch):
    """The Matplotlib figures that were made into pictures."""
    figures, png_of = [], pictures._png

    def keep(figure, **options):
        figures.append(figure)
        return png_of(figure, **options)

    monkeypatch.setattr(pictures, "_png", keep)
    return figures


# --- the page ---------------------------------------------------------------------------------------


def full_page():
    page = Page("Digits & <b>noise</b>", "a subtitle")
    page.facts({"accuracy": "98.6 %"})
    page.section("Samples", "first paragraph\n\nsecond paragraph")
    page.picture(report.sample_sheet(torch.zeros(2, 1, 4, 4), 2), "a caption", 'an "alt" text')
    page.section("Scores: σ < 1?")
    page.table(["sampler", "NFE"], [["EDM", "35"], ["VP", "256"]], "a note", {1}, 0)
    page.section("Samples")
    page.pictures([(png(), "left", "l"), (png(), "", "r")])
    page.preformatted("a  <b>\n│ c")
    return page


def test_page_asks_nothing_from_outside():
    html = full_page().html()
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    reader = Reader(html)
    sources = [value for _, attributes in reader.tags for name, value in attributes.items() if name == "src"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert [a["href"] for a in reader.all("link")] == ["data:,"]
    assert not reader.all("script") and not reader.all("iframe")
    policy = next(a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_pictures_arrive_unchanged():
    content = png(5, 7)
    page = Page("t")
    page.picture(content, "", "a")
    (image,) = Reader(page.html()).all("img")
    assert base64.b64decode(image["src"].split(",")[1]) == content


def test_every_text_is_escaped():
    evil = "<script>alert('1')</script>\"&"
    page = Page(evil, evil)
    page.paragraph(evil)
    page.section(evil, evil)
    page.facts({evil: evil})
    page.picture(png(), evil, evil)
    page.table([evil], [[evil]], evil)
    page.preformatted(evil)
    html = page.html()
    reader = Reader(html)
    assert "<script" not in html
    assert reader.all("img")[0]["alt"] == evil
    for tag in ("title", "h1", "h2", "dt", "dd", "figcaption", "th", "pre", "a"):
        assert evil in reader.text[tag]
    assert reader.text["p"].count(evil) == 4  # subtitle, paragraph, the section's text, the note


def test_contents_list_every_heading_with_a_working_anchor():
    page = full_page()
    page.section("日本")
    reader = Reader(page.html())
    headings = ["Samples", "Scores: σ < 1?", "Samples", "日本"]
    assert reader.text["h2"] == headings and reader.text["a"] == headings
    anchors = [a["href"] for a in reader.all("a")]
    assert anchors == ["#samples", "#scores-1", "#samples-2", "#section"]
    assert [f"#{a['id']}" for a in reader.all("h2")] == anchors
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_without_sections_has_no_contents():
    assert not Reader(Page("t").html()).all("nav")


def test_page_names_language_and_viewport():
    reader = Reader(full_page().html())
    assert reader.all("html")[0]["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in reader.all("meta")


def test_table_cells():
    reader = Reader(full_page().html())
    assert reader.text["th"] == ["sampler", "NFE", "EDM", "VP"] and reader.text["td"] == ["35", "256"]
    assert [a.get("scope") for a in reader.all("th")] == ["col", "col", "row", "row"]
    assert [a.get("class") for a in reader.all("td")] == ["number", "number"]
    assert [a.get("class") for a in reader.all("tr")] == [None, "highlight", None]
    page = Page("t")
    page.table(["n"], [["1"]], numeric={0})
    assert [a.get("class") for a in Reader(page.html()).all("th")] == ["number"]  # a number names no row


def test_table_refuses_ragged_rows():
    with pytest.raises(ValueError, match=r"rows\[1\]: got 1 cells; the header has 2"):
        Page("t").table(["a", "b"], [["1", "2"], ["1"]])


@pytest.mark.parametrize(
    "content, width, height, sharp",
    [
        (png(8, 8), 96, 96, True),
        (png(40, 10), 120, 30, True),
        (png(200, 100), 200, 100, True),
        (png(300, 150, dpi=(150, 150)), 192, 96, False),
    ],
)
def test_pictures_have_their_size(content, width, height, sharp):
    page = Page("t")
    page.picture(content, "", "a")
    (image,) = Reader(page.html()).all("img")
    assert (int(image["width"]), int(image["height"]), image.get("class") == "pixels") == (width, height, sharp)


def test_what_is_no_png_is_refused():
    with pytest.raises(ValueError, match="got 7 bytes that are not a PNG image"):
        Page("t").picture(b"GIF89a.", "", "a")


def test_write_is_whole_and_may_replace(tmp_path, monkeypatch):
    page, path = full_page(), tmp_path / "run" / "report.html"
    assert page.write(path) == path
    assert path.read_bytes() == page.html().encode()
    Page("later").write(str(path))
    after = path.read_bytes()
    assert b"later" in after

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        page.write(path)
    assert path.read_bytes() == after
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


# --- sheets -----------------------------------------------------------------------------------------


def test_sample_sheet_holds_the_pixels():
    images = torch.linspace(-1, 1, 5 * 3 * 2 * 4).reshape(5, 3, 2, 4)
    sheet = decoded(report.sample_sheet(images, columns=2, scale=3))
    height, width, gap = 3 * 2, 3 * 4, pictures.GAP
    assert sheet.shape == (3 * height + 2 * gap, 2 * width + gap, 3)
    expected = (127.5 * images + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    seen = np.zeros(sheet.shape[:2], bool)
    for k in range(5):
        top, left = (k // 2) * (height + gap), (k % 2) * (width + gap)
        block = sheet[top : top + height, left : left + width]
        assert np.array_equal(block, expected[k].repeat(3, 0).repeat(3, 1))
        seen[top : top + height, left : left + width] = True
    assert (sheet[~seen] == 255).all()


def test_black_and_white():
    images = torch.stack([-torch.ones(1, 8, 8), torch.ones(1, 8, 8)])
    sheet = decoded(report.sample_sheet(images, columns=9, scale=4))  # more columns than images
    assert sheet.shape == (32, 64 + pictures.GAP, 3)
    assert (sheet[:, :32] == 0).all() and (sheet[:, 32:] == 255).all()


@pytest.mark.parametrize("side, high", [(8, 96), (32, 128), (64, 128), (256, 256)])
def test_default_scale(side, high):
    assert decoded(report.sample_sheet(torch.zeros(1, 1, side, side), 1)).shape[0] == high


def test_row_labels_stand_left_of_their_rows():
    images = -torch.ones(6, 1, 8, 8)
    plain = decoded(report.sample_sheet(images, 3))
    labelled = decoded(report.sample_sheet(images, 3, ["σ", "a longer\nname"]))
    left = labelled.shape[1] - plain.shape[1]
    assert np.array_equal(labelled[:, left:], plain)
    ink = (labelled[:, :left] < 200).any(2)
    middles = [np.flatnonzero(part.any(1)).mean() for part in np.split(ink, 2)]
    assert middles == pytest.approx([48, 48], abs=12)
    assert not ink[:, -8:].any()  # a margin to the images
    with pytest.raises(ValueError, match="row_labels: got 1; the sheet has 2 rows"):
        report.sample_sheet(images, 3, ["0"])


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 8, 8), (0, 1, 8, 8)])
def test_sheet_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match="images: got shape"):
        report.sample_sheet(torch.zeros(shape), 2)


def test_sheet_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        report.sample_sheet(torch.full((1, 1, 8, 8), torch.nan), 1)


def trajectory(scaling):
    """Three steps of two samples: constant images under noise, and the denoised ones; x times s(sigma)."""
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.tensor([80.0, 2.0, 0.1, 0.0], dtype=torch.float64)
    noise = torch.randn(1, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    final = torch.tensor([-0.5, 0.5], dtype=torch.float64).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 8, 8)
    level = sigmas.reshape(-1, 1, 1, 1, 1)
    return scaling(level) * (final + level * noise), final.expand(3, -1, -1, -1, -1), sigmas


def cells(sheet, n):
    """The last n columns of cells of a sheet as (rows of pixels, n, 96, 3)."""
    pitch = 96 + pictures.GAP
    images = sheet[:, -(n * pitch - pictures.GAP) :]
    return [images[:, i * pitch : i * pitch + 96] for i in range(n)]


def test_trajectory_sheet():
    x, denoised, sigmas = trajectory(torch.ones_like)
    sheet = decoded(report.trajectory_sheet(x, denoised, sigmas, rows=1))
    columns = cells(sheet, 4)
    grey = int(127.5 * -0.5 + 128)
    last = columns[-1][-(96 * 2 + pictures.GAP) :]
    assert (last[:96] == grey).all()  # x at sigma 0 is the sample
    assert (last[-96:] == 255).all()  # and no D exists there
    for column in columns[:-1]:
        assert (column[-96:] == grey).all()
    noisy = columns[0][-(96 * 2 + pictures.GAP) : -(96 + pictures.GAP), :, 0]
    assert 40 < noisy.std() < 90  # the RMS of the samples, 0.5, is 64 levels: noise that is not saturated
    assert ((noisy == 0) | (noisy == 255)).mean() < 0.12


def test_trajectory_sheet_does_not_depend_on_the_scaling():
    plain = report.trajectory_sheet(*trajectory(torch.ones_like))
    scaled = report.trajectory_sheet(*trajectory(lambda sigma: 1 / (1 + sigma**2).sqrt()))
    assert np.abs(decoded(plain).astype(int) - decoded(scaled)).max() <= 1  # a level of rounding


def test_trajectory_sheet_takes_columns_and_rows():
    x, denoised, sigmas = trajectory(torch.ones_like)
    small = decoded(report.trajectory_sheet(x, denoised, sigmas, columns=2, rows=1))
    large = decoded(report.trajectory_sheet(x, denoised, sigmas, columns=99, rows=99))
    assert large.shape[1] - small.shape[1] == 2 * (96 + pictures.GAP)
    assert large.shape[0] - small.shape[0] == 2 * 96 + pictures.GAP + 4 * pictures.GAP
    with pytest.raises(ValueError, match=r"expected \(N \+ 1, B, C, H, W\)"):
        report.trajectory_sheet(x, x, sigmas)


# --- plots ------------------------------------------------------------------------------------------

SIGMAS = torch.logspace(-2.7, 1.9, 20, dtype=torch.float64)
LOSS = 1 - 0.8 * torch.exp(-(SIGMAS.log() ** 2) / 4)


@pytest.mark.parametrize(
    "draw, width, height",
    [
        (lambda: report.levels_plot({"EDM": torch.tensor([80, 1, 0.0]), "VP": [152, 3, 0.01, 0]}), 6.4, 3.8),
        (lambda: report.loss_plot(SIGMAS, {"a": (LOSS, LOSS / 20)}, (SIGMAS, LOSS)), 6.4, 3.8),
        (lambda: report.training_plot([1000, 2000], [1.0, 0.5]), 6.4, 3.2),
        (lambda: report.score_plot([("EDM", 2.0, 0.1), ("$x", 3.0, None)], 1.0, title="t"), 6.4, 1.3 + 2 * 0.36),
        (lambda: report.curves_plot([1, 2], {"a": [1, 2], "b": [2, 1]}, "x", "y", True, True), 6.4, 3.8),
    ],
)
def test_plots_are_pngs_of_their_size(draw, width, height):
    content = draw()
    shape = decoded(content).shape
    assert shape[:2] == pytest.approx((150 * height, 150 * width), abs=1)
    assert Image.open(io.BytesIO(content)).info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert (decoded(content)[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # white corners, nothing cut off
    assert draw() == content  # the same picture again, to the byte


def test_user_settings_are_neither_used_nor_changed():
    import matplotlib

    before = report.curves_plot([1, 2], {"a": [1, 2]}, "x", "y")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        assert report.curves_plot([1, 2], {"a": [1, 2]}, "x", "y") == before
        assert matplotlib.rcParams["axes.facecolor"] == "red" and matplotlib.rcParams["font.size"] == 30


def test_levels_plot_shows_every_level_but_zero(drawn):
    report.levels_plot({"EDM": torch.tensor([80.0, 1.0, 0.0]), "VP": [152.0, 3.0, 0.01, 0.0]})
    axes = drawn[0].axes[0]
    assert axes.get_yscale() == "log"
    edm, vp = axes.lines
    assert edm.get_xydata().tolist() == [[0, 80], [0.5, 1]]
    assert vp.get_ydata().tolist() == [152, 3, 0.01] and vp.get_xdata() == pytest.approx([0, 1 / 3, 2 / 3])
    assert (edm.get_color(), vp.get_color()) == ("#0072B2", "#D55E00")


def test_loss_plot_covers_sigmas(drawn):
    report.loss_plot(SIGMAS, {"training": (LOSS, LOSS / 20), "held-out": (LOSS * 1.1, LOSS / 10)}, (SIGMAS, LOSS))
    axes, density = drawn[0].axes
    assert axes.get_xscale() == density.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((float(SIGMAS[0]), float(SIGMAS[-1])))
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > float((LOSS * 1.2).max())  # mean + sem fits
    assert np.array_equal(axes.lines[1].get_ydata(), (LOSS * 1.1).numpy())
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(float((LOSS * 0.95).min()))
    assert axes.get_zorder() > density.get_zorder() and not axes.patch.get_visible()
    assert density.get_ylim() == pytest.approx((0, 1.15 * float(LOSS.max())))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0.01", "0.1", "1", "10"} <= set(labels)


def test_legend_covers_no_data(drawn):
    report.curves_plot([1, 2], {f"a curve with a long name {i}": [1, 2] for i in range(7)}, "x", "y")
    (figure,) = drawn
    box, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert box.y0 >= axes.y1 and box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_score_plot_marks_the_real_line(drawn):
    report.score_plot([("EDM", 3.4, 0.12), ("untrained", 310.0, None)], 1.21, "distance")
    (axes,) = drawn[0].axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["3.4 ± 0.12", "310", "real against real: 1.21"]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"] == [[1.21, 1.21]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["EDM", "untrained"]
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] < 1.21 and axes.get_xlim()[1] > 310
    assert axes.yaxis_inverted()  # the first on top


def test_score_plot_with_scores_of_zero_and_below(drawn):
    report.score_plot([("EDM", 0.0004, 0.0012), ("VE", 1.3, None), ("broken", float("nan"), None)], -0.0002)
    report.score_plot([("EDM", 0.0, None)])
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "symlog"
    assert axes.get_xlim()[0] < -0.0002 and axes.get_xlim()[1] > 1.3
    assert axes.texts[-1].get_text() == "real against real: −0.0002"
    drawn_numbers = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0", "0.001", "0.1"} <= set(drawn_numbers)


@pytest.mark.parametrize("low, labels", [(3.0, ["5", "10", "20"]), (0.003, ["0.01", "0.1", "1", "10"])])
def test_log_axes_have_plain_numbers(drawn, low, labels):
    report.curves_plot([low, 40.0], {"a": [1.0, 2.0]}, "x", "y", logx=True)
    axes = drawn[0].axes[0]
    left, right = axes.get_xlim()
    shown = [
        (where, label.get_text())
        for minor in (False, True)
        for where, label in zip(axes.get_xticks(minor=minor), axes.get_xticklabels(minor=minor), strict=True)
        if label.get_text() and left <= where <= right
    ]
    assert [text for _, text in sorted(shown)] == labels


def test_a_sampler_has_one_colour():
    fixed = pictures.colours(["EDM", "VP", "VE", "iDDPM"])
    assert pictures.colours(["mine", "iDDPM + DDIM", "ve, 35 steps", "VP-SDE", "EDM (Heun)"])[1:] == fixed[::-1]
    many = pictures.colours([f"curve {i}" for i in range(5)] + ["version"])
    assert not set(many) & set(fixed) and len(set(many)) == 5


# --- what it needs ----------------------------------------------------------------------------------


def test_missing_matplotlib_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'elucidiff[plot]'")):
        report.training_plot([1, 2], [1.0, 0.5])
    with pytest.raises(MissingExtraError, match="matplotlib is not installed"):
        report.sample_sheet(torch.zeros(1, 1, 8, 8), 1, ["a"])
    assert decoded(report.sample_sheet(torch.zeros(1, 1, 8, 8), 1)).shape == (96, 96, 3)  # needs none


def test_importing_the_report_imports_no_plotting():
    code = "import sys, elucidiff.report; print([m for m in ('matplotlib', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
