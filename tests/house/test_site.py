"The preview of the site: two pages are built and looked at, in a browser where one is installed."
import html, json, re, shutil, subprocess, sys
import docs, pytest
from helpers import root

names = ('index', '000_core')
browser = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The pages, built away from the working tree."
    top = tmp_path_factory.mktemp('site')
    code = ('import sys; sys.path.insert(0, "tools"); import docs; '
            f'docs.build({str(top/"out")!r}, {str(top/"cache")!r}, {names}, index=False)')
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return top/'out'

def test_pages_say_what_the_notebooks_say(site):
    home, core = ((site/f).read_text(encoding='utf-8') for f in ('index.html', 'core.html'))
    assert 'sslnb pretrain' in home and '<h1>sslnb</h1>' in home
    assert '<h3 id="rng">' in core and 'seed of the run' in core
    assert 'default_exp' not in core and 'nbdev_export' not in core
    assert 'class=here>Core</a>' in core

def test_maths_and_markup_are_rendered(site):
    for p in site.rglob('*.html'):
        text = re.sub(r'<(pre|code|script)\b.*?</\1>', '', p.read_text(encoding='utf-8'), flags=re.S)
        assert 'class="math' not in text, f'{p.name}: an equation that MathML cannot say'
        assert ':::' not in text and '{target=' not in text and '#|' not in text, f'{p.name}: markup shows through'

def test_links_of_built_pages_lead_somewhere(site):
    known = {str(nb.parent/docs.page(nb.name)) for nb in docs.notebooks()}
    known |= {str(p.relative_to(site)) for p in site.rglob('*')}
    for p in site.rglob('*.html'):
        text = p.read_text(encoding='utf-8')
        for link in re.findall(r'(?:href|src)="([^":]+)"', text):
            file, _, anchor = html.unescape(link).partition('#')
            assert not file or file in known, f'{p.name}: {link}'
            target = site/file if file else p
            found = not anchor or not target.exists() or f'id="{anchor}"' in target.read_text(encoding='utf-8')
            assert found, f'{p.name}: {link}'

def text(nb, kind):
    "All cells of one kind."
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == kind)

def anchors(nb):
    "What a link to a place in a notebook may name: its headings as pandoc writes them, and the names that it exports."
    slug = lambda h: re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', re.sub(r'^[^a-zA-Z]+', '', h)).strip().lower())
    heads = re.findall(r'^#+ +(.+)', text(nb, 'markdown'), re.M)
    names = re.findall(r'^(?:def|class) (\w+)', text(nb, 'code'), re.M)
    return {*map(slug, heads), *map(str.lower, names)}

@pytest.mark.quick
@pytest.mark.parametrize('nb', docs.notebooks(), ids=str)
def test_links_between_notebooks_lead_somewhere(nb):
    here = root/'nbs'/nb
    for link in re.findall(r'\]\((?!https?:|mailto:)([^)\s]+)\)', text(here, 'markdown')):
        file, _, anchor = link.partition('#')
        target = here.parent/file if file else here
        assert target.is_file(), f'{link}: no such file; link other pages by their notebooks, as 123_area.name.ipynb'
        assert not anchor or anchor in anchors(target), f'{link}: no heading or name is called so'

def test_sidebar_for_quarto_lists_every_notebook_once():
    listed = re.findall(r'\S+\.ipynb', docs.sidebar(docs.notebooks()))
    assert sorted(listed) == sorted(map(str, docs.notebooks())) and listed[0] == 'index.ipynb'

def test_pages_run_without_errors(site, tmp_path):
    "Chromium opens the page without a message, and search finds a name. Without Chromium, the parts are there."
    assert '"rng", "Core"' in (site/'search-index.js').read_text(encoding='utf-8')
    if not browser: return
    probe = '''<script>addEventListener("load", () => { box.value = "rng"; box.dispatchEvent(new Event("input"));
        document.title = "found " + list.querySelector("a").getAttribute("href"); })</script></body>'''
    text = (site/'core.html').read_text(encoding='utf-8')
    (site/'probe.html').write_text(text.replace('</body>', probe), encoding='utf-8')
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
             '--disable-background-networking', '--disable-component-update', '--enable-logging=stderr']
    for page in ('index.html', 'probe.html'):
        command = [browser, *flags, f'--user-data-dir={tmp_path/page}', '--dump-dom', (site/page).as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        errors = [l for l in done.stderr.split('\n') if ':CONSOLE' in l]
        assert '</html>' in done.stdout and not errors, errors or done.stderr[-2000:]
    assert '<title>found core.html#rng' in done.stdout
