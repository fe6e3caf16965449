// The token of a link stands behind its #, where no server and no log sees it.

function logIn() {
  const token = location.hash.slice(1);
  if (!token) return;
  history.replaceState(null, "", location.pathname);
  document.getElementById("token").value = token;
  document.getElementById("login").requestSubmit();
}

// A link that is opened where this page is open already loads nothing anew.
window.addEventListener("hashchange", logIn);
logIn();
