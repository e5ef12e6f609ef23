// Client of the API. A refused request throws an ApiError with the detail of the problem.

export class ApiError extends Error {
  constructor(message, lines = []) {
    super(message);
    this.lines = lines;
  }
}

let askForKey = null;
const KEY = "cracks-api-key";

export function onMissingKey(ask) {
  askForKey = ask;
}

async function request(path, options = {}, tries = 0) {
  const key = sessionStorage.getItem(KEY);
  let answer;
  try {
    answer = await fetch(path, {...options, headers: key ? {Authorization: `Bearer ${key}`} : {}});
  } catch {
    throw new ApiError("The server does not answer. Check the connection and try again.");
  }
  if (answer.status === 401 && askForKey) {
    sessionStorage.setItem(KEY, await askForKey());
    return request(path, options, tries);
  }
  if (answer.status === 429 && tries < 20) {
    await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("Retry-After") ?? 1)));
    return request(path, options, tries + 1);
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({detail: `The server answered ${answer.status}.`}));
    throw new ApiError(problem.detail, problem.errors);
  }
  return answer;
}

export async function getModel() {
  return (await request("/v1/model")).json();
}

// `settings` may have the `prevalence`, for which the server corrects the probabilities, and `mm_per_px` of the photo.
export async function mapPhoto(file, withPreview, settings) {
  const body = new FormData();
  body.append("file", file);
  const query = new URLSearchParams({preview: withPreview, ...settings});
  return (await request(`/v1/map?${query}`, {method: "POST", body})).json();
}

// Returns {batch, ...} if the server put the labels into its inbox, else {name, blob}: an archive to download.
export async function sendReviews(files, reviews) {
  const body = new FormData();
  for (const file of files) body.append("files", file);
  body.append("reviews", JSON.stringify(reviews));
  const answer = await request("/v1/reviews", {method: "POST", body});
  if (answer.headers.get("Content-Type").startsWith("application/json")) return answer.json();
  const name = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition"))[1];
  return {name, blob: await answer.blob()};
}
