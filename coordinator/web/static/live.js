// Keeps the page current: the server sends the changed part of this very address as server-sent events, and it is
// merged into what is there, so that focus, open details and what is being typed stay. Without this file the page is the
// same, and asks for itself anew.
"use strict";
(() => {
  const main = document.getElementById("main");
  const status = document.getElementById("live");
  const asOf = document.getElementById("asof");
  const pause = document.getElementById("pause");
  if (document.documentElement.dataset.follow === "no") return;
  const SILENT_AFTER = 20000;
  const AGAIN_AFTER = 5000;
  const AGAIN_AT_MOST = 120000;
  let source = null;
  let again = 0;
  let againAfter = AGAIN_AFTER;
  let heardAt = 0;
  let isPaused = false;

  const TEXTS = {
    live: "Live",
    lost: "Connection lost: this page may be out of date",
    ended: "Not live: trying again; reload to see why",
    paused: "Paused",
  };

  function tell(state) {
    if (document.documentElement.dataset.live === state) return;
    document.documentElement.dataset.live = state;
    status.textContent = TEXTS[state];
  }

  // A person's own doing stays: what they opened, and what they have typed.
  const keep = {
    beforeAttributeUpdated: (name, node) => !(name === "open" && node instanceof HTMLDetailsElement),
  };

  function show(event) {
    heard(event);
    Idiomorph.morph(main, event.data, { morphStyle: "innerHTML", ignoreActiveValue: true, callbacks: keep });
  }

  function heard(event) {
    heardAt = Date.now();
    againAfter = AGAIN_AFTER;
    if (event.lastEventId) asOf.textContent = event.lastEventId;
    tell("live");
  }

  function connect() {
    if (source || isPaused) return;
    source = new EventSource(location.pathname + location.search);
    source.addEventListener("page", show);
    source.addEventListener("ping", heard);
    source.onerror = () => (source && source.readyState === EventSource.CLOSED ? refused() : tell("lost"));
    heardAt = Date.now();
  }

  // A browser comes again by itself when a stream ends, and never when it was refused: by a coordinator without its
  // database, say, or one whose pages are all taken.
  function refused() {
    tell("ended");
    disconnect();
    again = window.setTimeout(connect, againAfter);
    againAfter = Math.min(2 * againAfter, AGAIN_AT_MOST);
  }

  function disconnect() {
    window.clearTimeout(again);
    if (source) source.close();
    source = null;
  }

  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? "Follow" : "Pause";
    if (isPaused) {
      disconnect();
      tell("paused");
    } else {
      connect();
    }
  });

  // A page that nobody sees needs no stream, and browsers keep only a few connections to one host.
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", connect);
  window.setInterval(() => {
    if (source && Date.now() - heardAt >= SILENT_AFTER) tell("lost");
  }, 5000);

  pause.hidden = false;
  connect();
})();
