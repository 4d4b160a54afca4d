"""Write README.md from nbs/index.ipynb: `python tools/readme.py`. Needs no Quarto and no pandoc."""
import json, re, sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def site():
    "Address of the published site."
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']['doc_host'] + ini['DEFAULT']['doc_baseurl']

def page(name):
    "Name of the page of a notebook: `31_callback.health.ipynb` becomes `callback.health.html`, as nbdev does it."
    return re.sub(r'^\d+[a-z]?_', '', name).removesuffix('.ipynb') + '.html'

def output(o):
    "One stored output as Markdown; a picture or a rich table falls back on its text."
    data = o.get('data', {})
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    text = ''.join(o.get('text') or data.get('text/plain') or '').rstrip()
    return f'```\n{text}\n```' if text else ''

def cell(c):
    "One notebook cell as Markdown, or an empty string where it is hidden."
    src = ''.join(c['source']).strip()
    flags = re.findall(r'^#\|\s*(\w+)', src, re.M) if c['cell_type'] == 'code' else []
    if not src or {'hide', 'default_exp'} & set(flags): return ''
    if c['cell_type'] != 'code': return src
    code = '\n'.join(l for l in src.split('\n') if not l.startswith('#|'))
    return '\n\n'.join(filter(None, [f'```python\n{code}\n```', *map(output, c['outputs'])]))

def readme(nb):
    "The whole notebook as Markdown; links to other notebooks go to their pages."
    text = '\n\n'.join(filter(None, map(cell, nb['cells'])))
    link = lambda m: f'({site()}/{"/".join([*m[1].split("/")[:-1], page(m[1].split("/")[-1])])}{m[2] or ""})'
    text = re.sub(r'\((?!https?:)([\w./-]+\.ipynb)(#[\w.-]+)?\)', link, text)
    return '<!-- Made from nbs/index.ipynb by tools/readme.py: edit there. -->\n\n' + text + '\n'

if __name__ == '__main__':
    dst = Path(sys.argv[1]) if len(sys.argv) > 1 else root/'README.md'
    dst.write_text(readme(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))), encoding='utf-8')
