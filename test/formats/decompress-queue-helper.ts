/** The helper thread of decompress-queue.test.ts. */
import fs from 'node:fs'
import { workerData } from 'node:worker_threads'
import { serveQueues } from '../../src/image/reading/decompress-queue.js'
import { FileStore } from '../../src/io/store.js'

const { memory, path } = workerData
const fd = fs.openSync(path, 'r')
serveQueues([memory], [new FileStore(path, fd, fs.fstatSync(fd).size)])
