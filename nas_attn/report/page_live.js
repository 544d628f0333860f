// A page of a search that runs reloads itself; its #part stays, as in any reload, and so does the place.
const live = byId("live"), placeKey = `place ${location.pathname}`;

function keepPlace(place) {
  try {
    if (place === null) sessionStorage.removeItem(placeKey);
    else sessionStorage.setItem(placeKey, String(place));
  } catch { /* a browser that keeps nothing for files */ }
}

function keptPlace() {
  try {
    return sessionStorage.getItem(placeKey);
  } catch {
    return null;
  }
}

const kept = keptPlace();
keepPlace(null);
// Charts are drawn once it is loaded, so that the page is as long as it was.
window.addEventListener("load", () => setTimeout(() => {
  if (kept !== null) window.scrollTo(0, Number(kept));
  if (!live || !live.dataset.reload) return;
  setInterval(() => {
    if (document.activeElement && document.activeElement.matches("input[type=text], input[type=search]")) return;
    keepPlace(window.scrollY);
    location.reload();
  }, 1000 * Number(live.dataset.reload));
}));
