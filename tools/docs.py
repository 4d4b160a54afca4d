"""Build the site.

    python tools/docs.py              # preview in _docs/, by pandoc: no Quarto, no network
    python tools/docs.py index 000_core # these pages only
    python tools/docs.py --quarto     # what is published: nbdev_docs, which needs Quarto

nbdev turns the notebooks into pages either way (documentation of every export, links between names); only the last step differs."""
import base64, html, json, os, re, subprocess, sys
from pathlib import Path
import yaml
from readme import page, root, site

assets = Path(__file__).parent/'site'
parts = {'0': 'Foundations', '1': 'Augmentation', '2': 'Data', '3': 'Models', '4': 'Losses', '5': 'Training', '6': 'Evaluation', '7': 'Checkpoints',
         '8': 'Methods', '9': 'Recipes, runs and command line', '': 'Tutorials and results'}

def notebooks():
    "Notebooks in reading order, the home page first, folders last; paths are relative to `nbs/`."
    nbs = root/'nbs'
    found = [p.relative_to(nbs) for p in nbs.rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(nbs).parts)]
    return sorted(found, key=lambda p: (p.stem != 'index', len(p.parts), str(p)))

def part(nb):
    "The part of the book that a notebook belongs to, by its decade or its folder."
    return parts[''] if len(nb.parts) > 1 else parts.get(nb.name[0])

def groups(nbs):
    "`(part, notebooks)` in reading order; the home page has no part."
    res = {}
    for nb in nbs: res.setdefault(part(nb), []).append(nb)
    return list(res.items())

def sidebar(nbs):
    "Quarto's sidebar, in parts; nbdev's own would be one flat list."
    items = []
    for name, group in groups(nbs):
        files = [str(p) for p in group]
        items += [dict(section=name, contents=files)] if name else files
    return yaml.safe_dump({'website': {'sidebar': {'contents': items}}}, sort_keys=False)

def title(nb):
    "First heading of a notebook."
    for c in json.loads((root/'nbs'/nb).read_text(encoding='utf-8'))['cells']:
        if m := re.match(r'#\s+(.+)', ''.join(c['source'])): return m[1].strip()
    return nb.stem

def process(nb, cache):
    "nbdev's own processing of one notebook, kept in `cache` until the notebook changes."
    from nbdev.processors import FilterDefaults
    from nbdev.serve_drv import exec_nb
    src, dst = root/'nbs'/nb, cache/nb
    if not dst.exists() or dst.stat().st_mtime < src.stat().st_mtime:
        dst.parent.mkdir(parents=True, exist_ok=True)
        os.environ['IN_TEST'] = '1'
        try: exec_nb(src, dst, FilterDefaults)
        finally: del os.environ['IN_TEST']
    return json.loads(dst.read_text(encoding='utf-8'))

def picture(data, kind, files, dst):
    "Write a picture beside the page; returns the Markdown that shows it."
    name = f'{dst.stem}_files/{len(files)}.{kind}'
    raw = ''.join(data)
    (dst.parent/name).parent.mkdir(exist_ok=True)
    (dst.parent/name).write_bytes(raw.encode() if kind == 'svg' else base64.b64decode(raw))
    files.append(name)
    return f'::: output\n![]({name})\n:::'

def documented(text):
    "What nbdev writes about a name, without its rule on top and without the links that it puts into comments of a signature."
    plain = lambda m: re.sub(r'\[(`[^`]+`)\]\([^)\s]+\)', r'\1', m[0])
    return re.sub(r'^```python\n.*?^```', plain, re.sub(r'\A---\n', '', text), flags=re.S | re.M)

def output(o, files, dst):
    "One stored output as pandoc Markdown, the richest form that it has."
    data = o.get('data', {})
    if 'text/html' in data: return '::: output\n```{=html}\n' + ''.join(data['text/html']) + '\n```\n:::'
    if 'text/markdown' in data: return documented(''.join(data['text/markdown']))
    for mime, kind in (('image/svg+xml', 'svg'), ('image/png', 'png'), ('image/jpeg', 'jpg')):
        if mime in data: return picture(data[mime], kind, files, dst)
    text = re.sub(r'\x1b\[[0-9;]*m', '', ''.join(o.get('text') or data.get('text/plain') or '')).rstrip()
    return f'::: output\n~~~~~~\n{text}\n~~~~~~\n:::' if text else ''

def code(src):
    "The code of a cell as pandoc Markdown, by its directives: shown, folded or not at all."
    flags = dict(re.findall(r'^#\|\s*([\w-]+):?\s*(.*)$', src, re.M))
    body = '\n'.join(l for l in src.split('\n') if not l.startswith('#|')).strip('\n')
    if not body or flags.get('echo') == 'false': return ''
    block = f'~~~~~~ python\n{body}\n~~~~~~'
    if 'code-fold' not in flags: return block
    opened, name = ' open' if flags['code-fold'] == 'show' else '', flags.get('code-summary', '"Code"').strip('"')
    return f'```{{=html}}\n<details class="fold"{opened}><summary>{name}</summary>\n```\n{block}\n```{{=html}}\n</details>\n```'

def markdown(nb, dst):
    "Front matter and pandoc Markdown of a processed notebook; its pictures are written beside `dst`."
    front, blocks, files = {}, [], []
    for c in nb['cells']:
        src = ''.join(c['source']).strip()
        if c['cell_type'] == 'raw' and not front: front = yaml.safe_load(src.strip('- \n')) or {}
        elif c['cell_type'] == 'markdown': blocks.append(src)
        elif c['cell_type'] == 'code':
            if 'include: false' in src: continue
            outs = [output(o, files, dst) for o in c.get('outputs', [])]
            blocks += ['::: doc', *outs, ':::'] if 'show_doc(' in src and outs else [code(src), *outs]
    return front, '\n\n'.join(filter(None, blocks))

def nav(nbs, here, up):
    "The list of pages for the left column."
    items = []
    for name, group in groups(nbs):
        if name: items.append(f'<h2>{name}</h2>')
        links = [f'<li><a href="{up}{nb.parent/page(nb.name)}"{" class=here" if nb == here else ""}>{html.escape(title(nb))}</a></li>' for nb in group]
        items.append(f'<ul>{"".join(links)}</ul>')
    return ''.join(items)

def relink(text, nbs, nb, up):
    "Links to the published site and to notebooks become links between the pages built here."
    text = re.sub(rf'href="{re.escape(site())}/([^"]*)"', lambda m: f'href="{up}{m[1] or "index.html"}"', text)
    return re.sub(r'href="(?!https?:)([\w./-]*?)([\w.-]+\.ipynb)(#[^"]*)?"', lambda m: f'href="{m[1]}{page(m[2])}{m[3] or ""}"', text)

def render(nb, nbs, out, cache):
    "One page, by pandoc."
    import pypandoc
    dst, up = out/nb.parent/page(nb.name), '../'*(len(nb.parts) - 1)
    dst.parent.mkdir(parents=True, exist_ok=True)
    front, text = markdown(process(nb, cache), dst)
    i = nbs.index(nb)
    v = dict(pagetitle=front.get('title') or title(nb), subtitle=html.escape(front.get('description') or ''), nav=nav(nbs, nb, up), up=up, notebook=str(nb))
    for key, j in (('prev', i - 1), ('next', i + 1)):
        if 0 <= j < len(nbs): v |= {key: f'{up}{nbs[j].parent/page(nbs[j].name)}', f'{key}title': html.escape(title(nbs[j]))}
    cmd = [pypandoc.get_pandoc_path(), '-f', 'markdown+autolink_bare_uris-implicit_figures-yaml_metadata_block', '-t', 'html5', '-s', '--mathml', '--toc', '--toc-depth=3',
           f'--template={assets/"page.html"}', '--wrap=none', *(a for k, x in v.items() for a in ('-V', f'{k}={x}'))]
    done = subprocess.run(cmd, input=text, capture_output=True, text=True, encoding='utf-8')
    if done.returncode: sys.exit(f'{nb}: {done.stderr}')
    if done.stderr: print(f'{nb}: {done.stderr.strip()}', file=sys.stderr)
    dst.write_text(relink(done.stdout, nbs, nb, up), encoding='utf-8')
    return dst

def search_index(pages, out):
    "Titles and headings of all pages, as a script, so that searching works from a folder too."
    rows = []
    for p in pages:
        text, url = p.read_text(encoding='utf-8'), str(p.relative_to(out))
        name = html.unescape(re.search(r'<title>(.*?) – ', text)[1])
        rows.append([name, '', url])
        for id_, inner in re.findall(r'<h[23] id="([^"]+)"[^>]*>(.*?)</h[23]>', text, re.S):
            rows.append([re.sub('<[^>]+>', '', inner), name, f'{url}#{id_}'])
    (out/'search-index.js').write_text(f'window.pages = {json.dumps([[html.unescape(x) for x in r] for r in rows])};\n', encoding='utf-8')

def build(out=root/'_docs', cache=root/'_proc', names=(), index=True):
    "The preview: all pages, or those whose notebooks are named. Returns the files written."
    nbs, out = notebooks(), Path(out)
    os.chdir(root)
    if index:
        import nbdev.doclinks
        nbdev.doclinks._build_modidx()
    out.mkdir(parents=True, exist_ok=True)
    for f in ('book.css', 'search.js'): (out/f).write_bytes((assets/f).read_bytes())
    pages = [render(nb, nbs, out, Path(cache)) for nb in nbs if not names or nb.stem in names]
    search_index(pages, out)
    return pages

def quarto():
    "The published site: our sidebar, then `nbdev_docs`. README.md is ours already, so nbdev is told that it is fresh."
    (root/'nbs/sidebar.yml').write_text(sidebar(notebooks()), encoding='utf-8')
    (root/'README.md').touch()
    subprocess.run(['nbdev_docs'], cwd=root, check=True)

if __name__ == '__main__':
    if '--quarto' in sys.argv: quarto()
    else: print(f'{len(build(names=[a.removesuffix(".ipynb") for a in sys.argv[1:]]))} pages in {root/"_docs"}')
