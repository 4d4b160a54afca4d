// Narrow screens start with the contents folded; "/" goes to the search box, which looks through titles and headings.
if (innerWidth < 900) document.querySelector('nav.book details').open = false;
const box = document.querySelector('.search input'), list = document.querySelector('.search ol');
const find = text => {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const score = ([name]) => (name.toLowerCase() === text.toLowerCase() ? 0 : name.toLowerCase().startsWith(words[0]) ? 1 : 2);
  return words.length ? window.pages.filter(([name, page]) => words.every(w => (name + ' ' + page).toLowerCase().includes(w)))
    .sort((a, b) => score(a) - score(b)).slice(0, 12) : [];
};
box.addEventListener('input', () => {
  list.replaceChildren(...find(box.value.trim()).map(([name, page, url]) => {
    const a = Object.assign(document.createElement('a'), {href: window.up + url, textContent: name});
    if (page) a.append(Object.assign(document.createElement('small'), {textContent: page}));
    const li = document.createElement('li');
    li.append(a);
    return li;
  }));
  list.hidden = !list.children.length;
});
box.form.addEventListener('submit', e => { e.preventDefault(); const a = list.querySelector('a'); if (a) location.href = a.href; });
document.addEventListener('keydown', e => {
  if (e.key === '/' && document.activeElement !== box) { e.preventDefault(); box.focus(); }
  if (e.key === 'Escape') { box.value = ''; list.hidden = true; box.blur(); }
});
