/** Names of disks in archives: FILE::MEMBER. FILE alone is the archive, too, where it has one disk. */
import fs from 'node:fs'
import { isAddress } from '../sources/registry.js'

const MARK = '::'

export interface ArchiveName {
  readonly archive: string
  /** As it was given: see `memberName` (tar.ts). */
  readonly member: string
}

/**
 * Splits the name of a disk in an archive. The archive is the longest prefix before `::` that is a file; a file of the whole name
 * wins. Returns undefined for all other names. Of an address all before the last `::` after the host is the archive's.
 */
export function splitArchiveName(name: string): ArchiveName | undefined {
  const isRemote = isAddress(name)
  if (!isRemote && fs.existsSync(name)) return undefined
  const start = isRemote ? name.indexOf('/', name.indexOf('://') + 3) : 0
  if (start < 0) return undefined
  for (let at = name.lastIndexOf(MARK); at > start; at = name.lastIndexOf(MARK, at - 1)) {
    const archive = name.slice(0, at)
    if (isRemote || isFile(archive)) return { archive, member: name.slice(at + MARK.length) }
  }
  return undefined
}

/** Returns the name of a member in messages, and where paths are taken apart: the archive is a folder in them. */
export const pathInArchive = (archive: string, member: string): string =>
  `${archive}${MARK}/${member}`

/** Returns the part of such a path that is the member's name. */
export const memberOfPath = (path: string, archive: string): string =>
  path.slice(archive.length + MARK.length + 1)

/** Returns the name of a member as a user gives it. */
export const givenName = (archive: string, member: string): string => `${archive}${MARK}${member}`

function isFile(name: string): boolean {
  try {
    return !fs.statSync(name).isDirectory()
  } catch {
    return false
  }
}
