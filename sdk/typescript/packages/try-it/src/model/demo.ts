// What the server offers to this page alone: the code of a mail. Only a server on this machine that mails nothing answers.

/** The code of a challenge, or null if the server does not show it. */
export async function codeOf(challengeId: string): Promise<string | null> {
  try {
    const response = await fetch('/try-it/code', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ challenge_id: challengeId }),
    });
    return response.ok ? ((await response.json()) as { code: string }).code : null;
  } catch {
    return null;
  }
}

/** A code as people read it. */
export const spaced = (code: string): string => `${code.slice(0, 4)} ${code.slice(4)}`;
