"""The page: what a visitor does on it, in Chromium, and the queue behind it."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2d_models.cli import main

pytest.importorskip("gradio", reason="Gradio is not installed: pip install gradio")
pytest.importorskip("selenium", reason="Selenium is not installed: pip install selenium")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from c2d_models.page import app
from c2d_models.page.running import run
from c2d_models.upscaling import jobs
from c2d_models.upscaling.batch import FileOptions, upscale_job
from c2d_models.upscaling.target import Target
from c2d_models.upscaling.upscaler import Upscaler

PHOTO = Path(__file__).parents[1] / "examples" / "photo.png"
BROWSER, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="Chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """a.png and b.jpg, small; huge.png, of more pixels than the page takes; and broken.png."""
    folder = tmp_path_factory.mktemp("pictures")
    photo = Image.open(PHOTO).convert("RGB")
    photo.crop((60, 20, 124, 68)).save(folder / "a.png")
    photo.crop((100, 40, 148, 88)).save(folder / "b.jpg", quality=90)
    Image.new("RGB", (400, 400)).save(folder / "huge.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    photo.crop((0, 0, 48, 32)).save(folder / "c.bmp")
    photo.crop((0, 0, 48, 32)).convert("CMYK").save(folder / "d.tif")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, temporary folder) of a page that takes 100,000 pixels."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "c2d_models.cli", "serve", "--max-pixels", "100000"]
    served = subprocess.Popen(
        [*command, "--tile", "128"],
        env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    line = served.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line
    yield line.split()[0], folder
    served.send_signal(signal.SIGTERM)
    assert served.wait(30) == 128 + signal.SIGTERM
    assert not list(folder.glob("c2d-page-*"))


class Visitor:
    """Somebody at a browser."""

    def __init__(self, address: str, width: int = 1280) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for argument in (*QUIET, "--window-size=1280,1000"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        screen = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get(address)
        self.wait(lambda: self.all("#files input[type=file]"))

    def wait(self, condition):
        return WebDriverWait(self.driver, 30, 0.1).until(lambda _: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return " ".join(each.text for each in self.all(selector))

    def labels(self, selector):
        return {each.get_attribute("aria-label") for each in self.all(selector)}

    def upload(self, *files):
        if clear := self.all("#files button[aria-label*='lear']"):
            clear[0].click()
        field = self.wait(lambda: self.all("#files input[type=file]"))[0]
        field.send_keys("\n".join(map(str, files)))
        names = {file.name for file in files}
        self.wait(
            lambda: (
                {cell.get_attribute("aria-label") for cell in self.all("#files td.filename")}
                == names
            )
        )

    def enlarge(self):
        """Click, and wait for the status to say how it ended."""
        self.driver.find_element(By.ID, "go").click()
        self.wait(lambda: "after" not in self.text("#status"))
        return self.ended()

    def ended(self):
        self.wait(lambda: "after" in self.text("#status") or self.all("#status [role=alert]"))
        return self.text("#status")

    def set(self, name, value):
        field = self.all(f"#{name} input[type=number]")[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def downloads(self, count):
        """Names and contents of the files that are offered."""
        self.wait(lambda: len(self.all("#ready a[download]")) == count)
        return {
            link.get_attribute("download"): self.fetch(link.get_attribute("href"))
            for link in self.all("#ready a[download]")
        }

    def fetch(self, address):
        text = self.driver.execute_async_script(
            "const done = arguments[1]; fetch(arguments[0]).then(a => a.blob()).then(blob => {"
            "const reader = new FileReader(); reader.onload = () => done(reader.result);"
            "reader.readAsDataURL(blob)})",
            address,
        )
        return base64.b64decode(text.partition(",")[2])

    def divider(self):
        """Where the divider stands, in pixels from the window's left."""
        return self.all("#slider .inner")[0].rect["x"]

    def hosts(self):
        """The hosts of all requests so far."""
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        addresses = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert len(addresses) > 5
        return {a.split("/")[2] for a in addresses if a.startswith(("http", "ws"))}


@pytest.fixture
def visitor(server):
    came = []

    def come(width=1280):
        came.append(Visitor(server[0], width))
        return came[-1]

    yield come
    for each in came:
        each.driver.quit()


def by_command(picture, folder, *arguments):
    """The bytes that `c2d upscale` makes."""
    output = ["-o", f"{folder / 'out'}/", "--tile=128"]
    assert main(["upscale", str(picture), *output, *arguments]) == 0
    return (folder / "out" / picture.name).read_bytes()


@needs_browser
def test_a_photograph_is_enlarged_compared_and_downloaded(visitor, server, pictures, tmp_path):
    someone = visitor()
    someone.upload(pictures / "a.png")
    someone.set("scale", 2.5)
    assert "a.png: 160x120 in" in someone.enlarge()
    made = someone.downloads(1)
    assert made == {"a.png": by_command(pictures / "a.png", tmp_path, "--scale", "2.5")}

    images = someone.wait(lambda: len(found := someone.all("#slider img")) == 2 and found)
    someone.wait(lambda: all(int(image.get_attribute("naturalWidth")) == 160 for image in images))
    before = someone.divider()
    handle = someone.all("#slider .outer")[0]
    ActionChains(someone.driver).drag_and_drop_by_offset(handle, -90, 0).perform()
    assert someone.divider() == pytest.approx(before - 90, abs=4)
    ranged = someone.all("#divider input[type=range]")[0]
    ranged.send_keys(*[Keys.ARROW_RIGHT] * 20)
    someone.wait(lambda: someone.divider() > before + 20)

    assert someone.hosts() == {server[0].split("/")[2]}
    assert list(server[1].rglob("a.png"))
    someone.driver.get("about:blank")
    someone.wait(lambda: not list(server[1].rglob("a.png")))


@needs_browser
def test_several_photographs_are_a_queue_and_a_zip(visitor, pictures, tmp_path):
    someone = visitor()
    names = ("a.png", "broken.png", "huge.png", "b.jpg")
    someone.upload(*(pictures / name for name in names))
    said = someone.enlarge()
    assert "a.png: 256x192" in said
    assert "b.jpg: 192x192" in said
    assert "huge.png: this file is too large: 400x400" in said
    assert "broken.png: this file is not a PNG" in said
    assert "/" not in said  # the server's paths are not shown
    made = someone.downloads(3)
    whole = zipfile.ZipFile(io.BytesIO(made.pop("enlarged.zip")))
    assert {name: whole.read(name) for name in whole.namelist()} == made
    assert made == {name: by_command(pictures / name, tmp_path) for name in ("a.png", "b.jpg")}


@needs_browser
def test_a_phone_and_a_keyboard(visitor, pictures, tmp_path):
    someone = visitor(width=390)
    wide = "return [document.documentElement.scrollWidth, window.innerWidth]"
    scroll, window = someone.driver.execute_script(wide)
    assert scroll <= window == 390
    someone.driver.find_element(By.ID, "go").click()
    assert "no photograph is chosen" in someone.ended()
    someone.upload(pictures / "a.png")

    def press(*keys):
        ActionChains(someone.driver).send_keys(*keys).perform()

    def reach(selector):
        for _ in range(40):
            press(Keys.TAB)
            focused = someone.driver.switch_to.active_element
            if focused in someone.all(selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    reach("#by input[value='to a size']")
    press(Keys.SPACE)
    someone.wait(lambda: any(field.is_displayed() for field in someone.all("#size textarea")))
    reach("#size textarea")
    press("wide")
    reach("#go")
    press(Keys.ENTER)
    assert "wide" in someone.ended()
    someone.driver.find_element(By.TAG_NAME, "body").click()
    field = someone.all("#size textarea")[0]
    field.clear()
    field.send_keys("100x")
    reach("#go")
    press(Keys.ENTER)
    someone.wait(lambda: "100x75" in someone.text("#status"))
    reach("#ready a[download]")
    made = someone.downloads(1)
    assert made == {"a.png": by_command(pictures / "a.png", tmp_path, "--size=100x")}


@needs_browser
def test_cancel_ends_the_work(visitor, server):
    someone = visitor()
    someone.upload(PHOTO)
    someone.set("scale", 3.99)
    someone.driver.find_element(By.ID, "go").click()
    someone.wait(lambda: "left" in someone.text("#status"))
    someone.driver.find_element(By.ID, "cancel").click()
    assert someone.ended().startswith("Cancelled after")
    assert not someone.all("#ready a[download]")
    assert not list(server[1].rglob(".c2d-*"))


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.bmp", "d.tif"])
def test_every_kind_of_picture_can_be_compared(name, pictures, tmp_path):
    upscaler = Upscaler.load(Target(2.0), "hiet_swinir_tiny_continuous", "cpu")
    (job,) = jobs.plan([pictures / name], tmp_path).jobs
    outcome = upscale_job(job, upscaler, FileOptions())
    before, after = (Image.open(file).convert("RGB") for file in app.compared(job))
    assert before.size == after.size == outcome.written.size[::-1]
    assert np.abs(np.asarray(before, float) - np.asarray(after, float)).mean() < 12


def test_the_queue_tells_how_far_it_is_and_stops(pictures, tmp_path):
    upscaler = Upscaler.load(Target(4.0), "hiet_swinir_tiny_continuous", "cpu", tile=128)
    todo = jobs.plan([pictures / "a.png", pictures / "broken.png"], tmp_path / "one").jobs
    steps = [
        (status.fraction, len(status.outcomes))
        for status in run(todo, upscaler, FileOptions(), threading.Event())
    ]
    assert steps == sorted(steps)
    assert steps[-1] == (1.0, 2)

    todo = jobs.plan([PHOTO, pictures / "a.png"], tmp_path / "two").jobs
    stop = threading.Event()
    for status in run(todo, upscaler, FileOptions(), stop):
        if status.fraction > 0.02 and not stop.is_set():
            assert status.remaining > 0
            stop.set()
    assert (status.stopped, status.outcomes) == (True, [])
    assert list((tmp_path / "two").iterdir()) == []

    steps = run(todo, upscaler, FileOptions(), threading.Event())
    next(steps)
    steps.close()  # as when the visitor leaves
    time.sleep(0.1)
    assert not any(thread.name == "c2d-page" for thread in threading.enumerate())
    assert list((tmp_path / "two").iterdir()) == []
