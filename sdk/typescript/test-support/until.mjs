/**
 * Waits until a condition is true. It may be asynchronous, and may throw as long as it is not true.
 *
 * @param what what is waited for, for the error; or a function that says it
 */
export async function until(condition, what = String(condition), ms = 60_000) {
  let last;
  for (const deadline = Date.now() + ms; Date.now() < deadline; await new Promise((resolve) => setTimeout(resolve, 10))) {
    try {
      if (await condition()) return;
      last = undefined;
    } catch (error) {
      last = error;
    }
  }
  const why = last ? ` (${last.message})` : '';
  throw new Error(`did not come true in ${ms} ms: ${typeof what === 'function' ? what() : what}${why}`, { cause: last });
}
