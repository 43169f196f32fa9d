/** A thread that helps to copy a disk. It loads no formats: it reads, decompresses and writes what `direct-copy.ts` has found. */
import { workerData } from 'node:worker_threads'
import { WritableFileStore } from '../../io/store.js'
import { JobRunner } from './copy-job.js'
import type { DirectSetup } from './direct-copy.js'
import { serveJobs } from './job-queue.js'

const { target, shape, memory, thread } = workerData as DirectSetup
const store = new WritableFileStore(target.path, target.fd, new BigInt64Array(target.size))
serveJobs(memory, thread, new JobRunner({ store, ...shape }))
