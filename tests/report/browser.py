"""A headless Chromium, driven over WebDriver's HTTP protocol by the standard library alone."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1400",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ARROW_RIGHT, TAB = "\ue014", "\ue004"


def missing() -> str | None:
    """What is not installed, or None."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not found: install Debian's chromium and chromium-driver" if absent else None


class Browser:
    """One session; a context manager that ends what it started."""

    def __init__(self, profile: Path, dark: bool = False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}", "--silent"], stderr=subprocess.DEVNULL)
        flags = [*FLAGS, f"--user-data-dir={profile}"] + (["--blink-settings=preferredColorScheme=0"] if dark else [])
        options = {
            "goog:chromeOptions": {"args": flags, "binary": shutil.which("chromium")},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = ""
        for _ in range(100):
            try:
                made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
                break
            except urllib.error.HTTPError as error:
                raise RuntimeError(error.read().decode()[:500]) from None
            except urllib.error.URLError:
                time.sleep(0.1)
        self.session = f"/session/{made['sessionId']}"
        self.open("about:blank")  # away from the browser's own first page, which asks for much

    def call(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=verb)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.call("POST", f"{self.session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value that a piece of JavaScript returns."""
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **given: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": given})

    def type(self, selector: str, keys: str) -> None:
        """Press keys on an element, as a user would."""
        found = self.call("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        self.call("POST", f"{self.session}/element/{found[ELEMENT]}/value", {"text": keys})

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self.call("POST", f"{self.session}/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """The URLs that the page has asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("GET", f"{self.session}/screenshot"))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(10)
