/** Users and passwords from .netrc, as curl and ftp read it. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

export interface Login {
  readonly user: string
  readonly password: string
}

const MAX_BYTES = 2 ** 20

/**
 * Returns the login for a host; undefined if there is none. The file is read each time, so that a corrected password counts.
 * @param user the user that the address names, if it names one
 */
export function loginFor(host: string, user: string | undefined): Login | undefined {
  const file = process.env.NETRC || path.join(os.homedir(), '.netrc')
  try {
    if (fs.statSync(file).size > MAX_BYTES) return undefined
    return findLogin(fs.readFileSync(file, 'utf8'), host, user)
  } catch {
    return undefined
  }
}

/** Does the same with the text of the file. */
export function findLogin(text: string, host: string, user: string | undefined): Login | undefined {
  const words = wordsOf(text)
  let isMatch = false
  let found: { user?: string; password?: string } = {}
  const login = () => {
    const name = found.user ?? user
    const isRight = isMatch && name !== undefined && (user === undefined || user === name)
    return isRight && found.password !== undefined
      ? { user: name, password: found.password }
      : undefined
  }
  for (let i = 0; i < words.length; i++) {
    const word = words[i]
    if (word === 'machine' || word === 'default') {
      const before = login()
      if (before) return before
      found = {}
      isMatch = word === 'default' || words[++i]?.toLowerCase() === host.toLowerCase()
    } else if (word === 'login') found.user = words[++i] ?? ''
    else if (word === 'password') found.password = words[++i] ?? ''
    else if (word === 'account') i++
  }
  return login()
}

/** Splits the text at white space. Words may be quoted; macros and comments are left out. */
function wordsOf(text: string): string[] {
  const bare = text.replace(/^[ \t]*macdef[\s\S]*?(?:\n\s*\n|$)/gm, '').replace(/^[ \t]*#.*$/gm, '')
  return [...bare.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(([, quoted, plain]) =>
    quoted === undefined ? (plain as string) : quoted.replace(/\\(.)/g, '$1'),
  )
}
