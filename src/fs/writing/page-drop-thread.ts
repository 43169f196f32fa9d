/** The thread that tells the kernel to drop pages; see page-dropper.ts. */
import { parentPort, workerData } from 'node:worker_threads'
import { nodeOf, write } from '../../io/libc.js'
import { PageDropper } from './page-dropper.js'
import { INVAL_INODE_OUT, NOTIFY_INVAL_INODE, OUT_HEADER } from '../protocol/protocol.js'

export interface PageDropSetup {
  readonly shared: SharedArrayBuffer
  /** A descriptor of the mount's /dev/fuse. */
  readonly device: number
  /** The kernel's number of the file; or the file's path, if only the kernel knows the number. */
  readonly node: number | string
}

const { shared, device, node } = workerData as PageDropSetup
const id = typeof node === 'number' ? node : nodeOf(node)
const message = Buffer.alloc(OUT_HEADER.size + INVAL_INODE_OUT.size)
OUT_HEADER.put(message, 0, {
  length: message.length,
  error: NOTIFY_INVAL_INODE,
  unique: Buffer.alloc(8),
})
// The thread that started this one may wait for it without blocking.
parentPort?.postMessage('ready')
new PageDropper(shared).serve((offset, length) => {
  INVAL_INODE_OUT.put(message, OUT_HEADER.size, { ino: id, offset, length })
  // This fails if the kernel does not know the file any more. Then it has no pages of it.
  write(device, message, message.length)
})
