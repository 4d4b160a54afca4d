"The preview of the site: two pages are built and looked at, in a browser where one is installed."
import html, re, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
names = ('index', '00_core')
browser = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The pages, built away from the working tree."
    top = tmp_path_factory.mktemp('site')
    code = f'import sys; sys.path.insert(0, "tools"); import docs; docs.build({str(top/"out")!r}, {str(top/"cache")!r}, {names}, index=False)'
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return top/'out'

def test_pages_say_what_the_notebooks_say(site):
    home, core = ((site/f).read_text(encoding='utf-8') for f in ('index.html', 'core.html'))
    assert 'sslnb pretrain' in home and '<h1>sslnb</h1>' in home
    assert '<h3 id="rng">' in core and 'seed of the run' in core and 'default_exp' not in core and 'nbdev_export' not in core
    assert 'class=here>Core</a>' in core

def test_maths_and_markup_are_rendered(site):
    for p in site.rglob('*.html'):
        text = re.sub(r'<(pre|code|script)\b.*?</\1>', '', p.read_text(encoding='utf-8'), flags=re.S)
        assert 'class="math' not in text, f'{p.name}: an equation that MathML cannot say'
        assert ':::' not in text and '{target=' not in text and '#|' not in text, f'{p.name}: markup shows through'

def test_links_between_pages_lead_somewhere(site):
    sys.path.insert(0, str(root/'tools'))
    try: import docs
    finally: sys.path.pop(0)
    known = {str(nb.parent/docs.page(nb.name)) for nb in docs.notebooks()} | {str(p.relative_to(site)) for p in site.rglob('*')}
    for p in site.rglob('*.html'):
        text = p.read_text(encoding='utf-8')
        for link in re.findall(r'(?:href|src)="([^":]+)"', text):
            file, _, anchor = html.unescape(link).partition('#')
            assert not file or file in known, f'{p.name}: {link}'
            target = site/file if file else p
            if anchor and target.exists(): assert f'id="{anchor}"' in target.read_text(encoding='utf-8'), f'{p.name}: {link}'

def test_sidebar_for_quarto_lists_every_notebook_once():
    sys.path.insert(0, str(root/'tools'))
    try: import docs
    finally: sys.path.pop(0)
    listed = re.findall(r'\S+\.ipynb', docs.sidebar(docs.notebooks()))
    assert sorted(listed) == sorted(map(str, docs.notebooks())) and listed[0] == 'index.ipynb'

def test_pages_run_without_errors(site, tmp_path):
    "Chromium opens the page and its script: no message on the console, and search finds a name. Without a browser, the parts are checked to be there."
    assert '"rng", "Core"' in (site/'search-index.js').read_text(encoding='utf-8')
    if not browser: return
    probe = '''<script>addEventListener("load", () => { box.value = "rng"; box.dispatchEvent(new Event("input"));
        document.title = "found " + list.querySelector("a").getAttribute("href"); })</script></body>'''
    (site/'probe.html').write_text((site/'core.html').read_text(encoding='utf-8').replace('</body>', probe), encoding='utf-8')
    flags = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'
    for page in ('index.html', 'probe.html'):
        done = subprocess.run([browser, *flags.split(), '--enable-logging=stderr', f'--user-data-dir={tmp_path/page}', '--dump-dom', (site/page).as_uri()],
                              capture_output=True, text=True, timeout=120)
        errors = [l for l in done.stderr.split('\n') if ':CONSOLE' in l]
        assert '</html>' in done.stdout and not errors, errors or done.stderr[-2000:]
    assert '<title>found core.html#rng' in done.stdout
