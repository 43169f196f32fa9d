/** The thread that makes the kernel forget names, attributes and pages; see forgetter.ts. */
import { parentPort } from 'node:worker_threads'
import { nodeOf, write } from '../../io/libc.js'
import {
  INVAL_ENTRY_OUT,
  INVAL_INODE_OUT,
  NOTIFY_INVAL_ENTRY,
  NOTIFY_INVAL_INODE,
  OUT_HEADER,
} from '../protocol/protocol.js'
import type { Forgetting } from '../session.js'

export interface ForgetOrder extends Forgetting {
  /** Files by their paths, whose numbers only the kernel knows. It forgets what it has read of them. */
  readonly paths: readonly string[]
  /** A descriptor of the mount's /dev/fuse. */
  readonly device: number
}

/** An offset below 0 says that pages stay. */
const NO_PAGES = -1

parentPort?.on('message', ({ device, names, files, paths }: ForgetOrder) => {
  // Each fails if the kernel does not know the name or the file. Then it has nothing to forget.
  for (const { parent, name } of names) {
    const bytes = Buffer.from(`${name}\0`)
    const head = INVAL_ENTRY_OUT.encode({ parent, namelen: bytes.length - 1, flags: 0 })
    notify(device, NOTIFY_INVAL_ENTRY, Buffer.concat([head, bytes]))
  }
  for (const { id, pages } of files) forget(device, id, pages ? 0 : NO_PAGES)
  for (const path of paths) {
    const id = numberOf(path)
    if (id !== undefined) forget(device, id, 0)
  }
  parentPort?.postMessage('done')
})

function forget(device: number, ino: number, offset: number): void {
  notify(device, NOTIFY_INVAL_INODE, INVAL_INODE_OUT.encode({ ino, offset, length: 0 }))
}

/** Returns the kernel's number of the file at `path`; undefined if it is gone. */
function numberOf(path: string): number | undefined {
  try {
    return nodeOf(path)
  } catch {
    return undefined
  }
}

function notify(device: number, code: number, payload: Buffer): void {
  const length = OUT_HEADER.size + payload.length
  const head = OUT_HEADER.encode({ length, error: code, unique: Buffer.alloc(8) })
  const message = Buffer.concat([head, payload])
  write(device, message, message.length)
}
