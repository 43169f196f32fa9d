/**
 * Tells whether output goes to systemd's journal. Programs that a service starts inherit JOURNAL_STREAM, terminals of a desktop
 * among them, so the variable alone says nothing (systemd.exec(5)).
 */
import fs from 'node:fs'

const STDOUT = 1
const STDERR = 2

/** Reports whether the descriptor `fd` is the stream to the journal that systemd has made for a service. */
export function isJournal(fd: number): boolean {
  const { JOURNAL_STREAM } = process.env
  if (JOURNAL_STREAM === undefined) return false
  try {
    const { dev, ino } = fs.fstatSync(fd, { bigint: true })
    return JOURNAL_STREAM === `${dev}:${ino}`
  } catch {
    return false
  }
}

/** Returns the value of JOURNAL_STREAM for a server in the background, which has no stream of its own: it is set if this process has one. */
export const journalForServer = (): string | undefined =>
  isJournal(STDOUT) || isJournal(STDERR) ? process.env.JOURNAL_STREAM : undefined

/** Reports, in a server in the background, whether the command that started it writes into the journal. */
export const startsInJournal = (): boolean => process.env.JOURNAL_STREAM !== undefined
