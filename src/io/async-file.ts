/** Reads at a place of a file, in the threads of libuv's pool. */
import fs from 'node:fs'
import { SystemError } from '../errors.js'

const EIO = 5

/** Reads into all of `target`. Resolves to the bytes read; fewer only at the end of the file. Rejects with SystemError. */
export async function readAt(
  fd: number,
  target: Buffer,
  at: number,
  path: string,
): Promise<number> {
  let done = 0
  while (done < target.length) {
    const got = await readOnce(fd, target, done, at + done, path)
    if (got === 0) break
    done += got
  }
  return done
}

function readOnce(
  fd: number,
  target: Buffer,
  start: number,
  at: number,
  path: string,
): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.read(fd, target, start, target.length - start, at, (error, bytes) => {
      if (error) reject(new SystemError('read', Math.abs(error.errno ?? EIO), path))
      else resolve(bytes)
    })
  })
}
