# What does a reader of an SVG picture see under the pointer? Opens the picture in headless Chromium and prints, for each
# rectangle of a run, the title that its centre shows on hover and its colour there; then the size of the page.
#   hover.py BROWSER PICTURE.svg SCRATCH.html
import html
import pathlib
import re
import subprocess
import sys

SCRIPT = """
const lines = [];
for (const shape of document.querySelectorAll('rect.c')) {
  const box = shape.getBoundingClientRect();
  const seen = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  const title = seen && seen.querySelector('title');
  lines.push((title ? title.textContent : 'nothing') + ' | ' + getComputedStyle(seen).fill);
}
const page = document.querySelector('svg').getBoundingClientRect();
lines.push('page ' + page.width + ' x ' + page.height);
document.getElementById('report').textContent = lines.join('\\n');
"""

browser, picture, scratch = sys.argv[1:]
page = pathlib.Path(scratch).absolute()
page.write_text(
    f"<!doctype html><body style='margin:0'>{pathlib.Path(picture).read_text()}"
    f"<pre id='report'></pre><script>{SCRIPT}</script></body>"
)
dom = subprocess.run(
    [browser, "--no-sandbox", "--disable-gpu", "--window-size=2000,2000", "--virtual-time-budget=5000", "--dump-dom",
     page.as_uri()],
    capture_output=True, text=True, timeout=120, check=True,
).stdout
print(html.unescape(re.search(r"<pre id=\"report\">(.*?)</pre>", dom, re.DOTALL).group(1)))
