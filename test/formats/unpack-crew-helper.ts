/** The helper thread of unpack-crew.test.ts. */
import fs from 'node:fs'
import { workerData } from 'node:worker_threads'
import { helpCrews } from '../../src/image/unpack-crew.js'
import { FileStore } from '../../src/io/store.js'

const { memory, path } = workerData
const fd = fs.openSync(path, 'r')
helpCrews([memory], [new FileStore(path, fd, fs.fstatSync(fd).size)])
