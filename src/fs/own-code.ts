/**
 * Tells whether a file of this program is still the one that was there when the process began. A thread that starts later
 * shares memory with older threads, so it must run the same version, also if the program has been upgraded meanwhile.
 */
import { type BigIntStats, promises, statSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

export class OwnCode {
  private readonly path: string
  private readonly first: string

  /** Throws an error of the file system. */
  constructor(url: URL) {
    this.path = fileURLToPath(url)
    this.first = identity(statSync(this.path, { bigint: true }))
  }

  /** Throws an error with the reason if the file has changed. Does not block: its file system may be slow, or gone. */
  async requireUnchanged(): Promise<void> {
    const now = identity(await promises.stat(this.path, { bigint: true }))
    if (now !== this.first) throw new Error(`${this.path} has changed since the mount began`)
  }
}

const identity = ({ dev, ino, size, ctimeNs }: BigIntStats): string =>
  [dev, ino, size, ctimeNs].join()
