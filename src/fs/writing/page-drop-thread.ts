/** The thread that tells the kernel to drop pages; see page-dropper.ts. */
import { parentPort, workerData } from 'node:worker_threads'
import { nodeOf, write } from '../../io/libc.js'
import { PageDropper } from './page-dropper.js'
import {
  INVAL_INODE_OUT,
  NOTIFY_INVAL_INODE,
  NOTIFY_STORE,
  OUT_HEADER,
  STORE_OUT,
} from '../protocol/protocol.js'

export interface PageDropSetup {
  readonly shared: SharedArrayBuffer
  /** A descriptor of the mount's /dev/fuse. */
  readonly device: number
  /** The kernel's number of the file; or the file's path, if only the kernel knows the number. */
  readonly node: number | string
}

const { shared, device, node } = workerData as PageDropSetup
const id = typeof node === 'number' ? node : nodeOf(node)
const message = notification(NOTIFY_INVAL_INODE, INVAL_INODE_OUT.size)
const store = notification(NOTIFY_STORE, STORE_OUT.size + 1)
// The thread that started this one may wait for it without blocking.
parentPort?.postMessage('ready')
new PageDropper(shared).serve((offset, length, end) => {
  // The kernel keeps its own size where it keeps what is written, but a byte that it gets makes the file as long.
  if (end) {
    const { sizeBytes, lastByte } = end
    STORE_OUT.put(store, OUT_HEADER.size, {
      nodeid: id,
      offset: sizeBytes - 1,
      size: 1,
      padding: 0,
    })
    store[store.length - 1] = lastByte
    write(device, store, store.length)
  }
  INVAL_INODE_OUT.put(message, OUT_HEADER.size, { ino: id, offset, length })
  // This fails if the kernel does not know the file any more. Then it has no pages of it.
  write(device, message, message.length)
})

function notification(code: number, bytes: number): Buffer {
  const buffer = Buffer.alloc(OUT_HEADER.size + bytes)
  OUT_HEADER.put(buffer, 0, { length: buffer.length, error: code, unique: Buffer.alloc(8) })
  return buffer
}
