/** Replaces a small file as a whole. */
import fs from 'node:fs'
import { constants } from 'node:os'
import path from 'node:path'
import { SystemError } from '../errors.js'

const { O_WRONLY, O_CREAT, O_EXCL, O_RDONLY } = fs.constants

/**
 * Gives the file at `name`, which `fd` has open, a new content: a new file with the same owner and mode takes its name. After a
 * power cut at any moment the file has the old content or the new one. `fd` then leads to the old file, which has no name any
 * more. Throws SystemError, and then nothing has changed.
 */
export function replaceFile(name: string, fd: number, content: Buffer): void {
  let temporary: string | undefined
  try {
    const file = fs.realpathSync(name)
    const old = fs.fstatSync(fd, { bigint: true })
    const there = fs.statSync(file, { bigint: true })
    if (old.dev !== there.dev || old.ino !== there.ino) {
      throw new SystemError('replace', constants.errno.ESTALE, name)
    }
    const folder = path.dirname(file)
    temporary = path.join(folder, `.vimgfs-${process.pid}-${path.basename(file).slice(0, 100)}`)
    write(temporary, content, fs.fstatSync(fd))
    fs.renameSync(temporary, file)
    temporary = undefined
    syncFolder(folder)
  } catch (error) {
    if (temporary !== undefined) fs.rmSync(temporary, { force: true })
    throw asSystemError(error, name)
  }
}

function asSystemError(error: unknown, name: string): unknown {
  if (error instanceof SystemError) return error
  const { errno, syscall } = error as NodeJS.ErrnoException
  return errno === undefined ? error : new SystemError(syscall ?? 'replace', -errno, name)
}

function write(name: string, content: Buffer, { uid, gid, mode }: fs.Stats): void {
  const fd = fs.openSync(name, O_WRONLY | O_CREAT | O_EXCL, 0o600)
  try {
    fs.writeFileSync(fd, content)
    const now = fs.fstatSync(fd)
    if (now.uid !== uid || now.gid !== gid) fs.fchownSync(fd, uid, gid)
    fs.fchmodSync(fd, mode & 0o7777)
    fs.fsyncSync(fd)
  } finally {
    fs.closeSync(fd)
  }
}

/** Makes the names in `folder` durable, where its file system can. */
export function syncFolder(folder: string): void {
  const fd = fs.openSync(folder, O_RDONLY)
  try {
    fs.fsyncSync(fd)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error
  } finally {
    fs.closeSync(fd)
  }
}
