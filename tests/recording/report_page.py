"""The report in a browser, as somebody looks at it and operates it."""

import base64
import time
from contextlib import suppress

import numpy as np
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

# Read from copies, so that the page's own canvases are drawn as ever.
READ = """
const read = (canvas) => {
  const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
  const context = copy.getContext('2d', {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  return context.getImageData(0, 0, copy.width, copy.height).data;
};
"""
# In the order of the samples; a change in any pixel very likely changes the sum.
SUMS = f"""{READ}
return [...document.querySelectorAll(arguments[0])].map((canvas) =>
  read(canvas).reduce((sum, value) => (sum * 31 + value) | 0, 0));
"""
PIXELS = f"""{READ}
const canvas = document.querySelector(arguments[0]);
let text = '';
for (const value of read(canvas).filter((_, place) => place % 4 < 3)) text += String.fromCharCode(value);
return [canvas.width, canvas.height, btoa(text)];
"""
MAPS = "figure.map canvas"
# A map is told to people who do not see it, once it is drawn.
ALL_DRAWN = """
const maps = [...document.querySelectorAll(arguments[0])];
return maps.length > 0 && maps.every((map) => map.hasAttribute('aria-label'));
"""


class Page:
    """A page in a browser."""

    def __init__(self, browser, path):
        self.browser = browser
        self.emulate()
        browser.get_log("browser")
        browser.get(path.as_uri())
        self.wait_until_drawn()

    def emulate(self, width=1440, height=900, scheme="light", reduced_motion="no-preference", mobile=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": reduced_motion}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def text(self, selector):
        return self.one(selector).text

    def press(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    def drag(self, selector, start, end):
        """From one place to another, in shares of the element's width."""
        target = self.one(selector)
        width = target.size["width"]
        chain = ActionChains(self.browser, duration=20).move_to_element_with_offset(target, (start - 0.5) * width, 0)
        chain.click_and_hold().move_by_offset((end - start) * width / 2, 0).move_by_offset((end - start) * width / 2, 0)
        chain.release().perform()

    def wait_until_drawn(self):
        """Rows out of view are drawn when the browser has time, so what was just made can still be blank."""
        self.until(lambda: self.browser.execute_script(ALL_DRAWN, MAPS))

    def sums(self, selector):
        self.wait_until_drawn()
        return self.browser.execute_script(SUMS, selector)

    def pixels(self, selector):
        self.wait_until_drawn()
        width, height, data = self.browser.execute_script(PIXELS, selector)
        return np.frombuffer(base64.b64decode(data), dtype=np.uint8).reshape(height, width, 3)

    def map_of(self, sample):
        return f'[data-sample="{sample}"] {MAPS}'

    def order(self):
        return [int(row.get_attribute("data-sample")) for row in self.all(".sample")]

    def step(self):
        return self.text("#step-number")

    def cursors(self):
        script = "return [...document.querySelectorAll('#curves .cursor')].map((one) => Number(one.getAttribute('x1')))"
        return self.browser.execute_script(script)

    def until(self, condition, seconds=30):
        """What the condition returns as soon as it is truthy."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(StaleElementReferenceException, ValueError):  # made anew in that moment, or not there yet
                if result := condition():
                    return result
            assert time.monotonic() < deadline, f"still not so after {seconds} s"
            time.sleep(0.02)

    def goes_to(self, step):
        self.until(lambda: self.step() == f"step {step}")

    def complaints(self):
        return self.browser.get_log("browser")
