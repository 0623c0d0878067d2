// Reads codes from the mails that a server with the mailer `file:` writes into a folder.

import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

const TIMEOUT_MS = 60_000;

/** The names of the mails in a folder; none if the folder does not exist. */
export async function mails(dir) {
  const names = await readdir(dir).catch((error) => {
    if (error.code !== 'ENOENT') throw error;
    return [];
  });
  return names.filter((name) => name.endsWith('.eml'));
}

/** Waits for a mail to `email` with a code that is not among `before`: the newest if there are several. Returns the code. */
export async function mailedCode(dir, email, before) {
  for (const deadline = Date.now() + TIMEOUT_MS; Date.now() < deadline; await pause(20)) {
    const found = [];
    for (const name of (await mails(dir)).filter((name) => !before.has(name))) {
      const { to, text } = parseMail(await readFile(join(dir, name), 'utf8'));
      const codes = new Set(text.match(/(?<!\d)\d{8}(?!\d)/g));
      if (!to.includes(email) || codes.size === 0) continue;
      if (codes.size > 1) throw new Error(`the code is not the only eight-digit group in:\n${text}`);
      found.push({ code: [...codes][0], at: (await stat(join(dir, name))).mtimeMs });
    }
    if (found.length > 0) return found.sort((a, b) => b.at - a.at)[0].code;
  }
  throw new Error(`no mail with a code for ${email} in ${dir}`);
}

/** The recipient, and the subject with the text, of a single-part mail. */
function parseMail(raw) {
  const [head, ...rest] = raw.split(/\r?\n\r?\n/);
  const header = (name) => head.replace(/\r?\n[ \t]+/g, ' ').match(new RegExp(`^${name}: *(.*)$`, 'im'))?.[1] ?? '';
  let body = rest.join('\n\n');
  const encoding = header('Content-Transfer-Encoding').toLowerCase();
  if (encoding === 'base64') body = Buffer.from(body, 'base64').toString();
  if (encoding === 'quoted-printable') {
    body = body.replace(/=\r?\n/g, '').replace(/=([0-9A-F]{2})/gi, (_, hex) => String.fromCharCode(parseInt(hex, 16)));
  }
  return { to: header('To').toLowerCase(), text: `${header('Subject')}\n${body}` };
}
