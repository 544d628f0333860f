// A page of a search that runs reloads itself; its #part stays, as in any reload, and so does the place.
const live = byId("live"), placeKey = `place ${location.pathname}`, patience = 10000;

function keepPlace(place) {
  try {
    if (place === null) sessionStorage.removeItem(placeKey);
    else sessionStorage.setItem(placeKey, JSON.stringify(place));
  } catch { /* a browser that keeps nothing for files */ }
}

function keptPlace() {
  try {
    return JSON.parse(sessionStorage.getItem(placeKey));
  } catch {
    return null;
  }
}

function reloadAgain() {
  if (!live || !live.dataset.reload) return;
  setInterval(() => {
    if (document.activeElement && document.activeElement.matches("input[type=text], input[type=search]")) return;
    keepPlace({ top: window.scrollY, height: document.body.scrollHeight });
    location.reload();
  }, 1000 * Number(live.dataset.reload));
}

// Once charts are drawn and the page is as long as it was; else what grows above moves the place.
function restore(kept, began) {
  if (kept && document.body.scrollHeight < kept.height && performance.now() - began < patience) {
    setTimeout(() => restore(kept, began), 50);
    return;
  }
  if (kept) window.scrollTo({ top: kept.top, behavior: "instant" });
  reloadAgain();
}

const kept = keptPlace();
keepPlace(null);
window.addEventListener("load", () => restore(kept, performance.now()));
