/** A thread of bitmap-tracker.test.ts: marks every so manieth piece once the others are there, too. */
import { workerData } from 'node:worker_threads'
import { BitmapTracker } from '../../../src/formats/qcow2/bitmap-tracker.js'

const { memory, gate, threads, first, pieces, pieceBytes } = workerData
const tracker = new BitmapTracker(memory)
const arrived = new Int32Array(gate)
Atomics.add(arrived, 0, 1)
// All are to run the next line at the same time; one that fails to start must not stop the others.
const deadline = performance.now() + 5000
while (Atomics.load(arrived, 0) < threads && performance.now() < deadline);
for (let i = first; i < pieces; i += threads) tracker.mark(i * pieceBytes, pieceBytes)
