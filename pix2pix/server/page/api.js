// Requests to the server that this page came from. A token is given after the address: /#token=...

const key = "pix2pix-token";
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(key, given);
  history.replaceState(null, "", location.pathname);
}

export async function ask(path, options = {}) {
  const token = sessionStorage.getItem(key);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  let detail = `${answer.status} ${answer.statusText}`;
  try {
    detail = (await answer.json()).detail;
  } catch { /* no problem as JSON: the status says it */ }
  const error = new Error(answer.status === 401 ? "This server needs its token: open /#token=TOKEN" : detail);
  error.retryAfter = Number(answer.headers.get("Retry-After")) || 0;
  throw error;
}

// BMP takes no time to write and to read; it has no alpha.
export function translate(model, image, signal) {
  const format = model.out_channels === 4 ? "png" : "bmp";
  return ask(`/models/${encodeURIComponent(model.name)}/translate?format=${format}&fit=resize`, {
    method: "POST", body: image, signal, headers: { "Content-Type": "image/png" },
  });
}
