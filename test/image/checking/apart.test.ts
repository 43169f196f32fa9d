/** Long work in a thread of its own: it does the same as in the main thread, and signals are answered meanwhile. */
import { statSync, writeFileSync } from 'node:fs'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as check } from '../../../src/cli/check.js'
import { run as snapshot } from '../../../src/cli/snapshot.js'
import { ImageError, SystemError } from '../../../src/errors.js'
import { SnapshotLimit } from '../../../src/formats/snapshot-limit.js'
import { runApart } from '../../../src/image/checking/apart.js'
import { runCheck } from '../../../src/image/checking/check-run.js'
import { closeChain } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { receivedError, sentError } from '../../../src/image/sent-error.js'
import { listSnapshots } from '../../../src/index.js'
import { noise } from '../../fixtures/model.js'
import { buildImage, type Cluster } from '../../fixtures/qcow2-builder.js'
import { runHere } from '../../support/command.js'
import { tempFolder } from '../../support/run.js'

const CLUSTER = 65_536
const IMAGE = buildImage({
  clusterBits: 16,
  sizeBytes: 16 * CLUSTER,
  clusters: new Map<number, Cluster>([
    [0, { kind: 'data', bytes: noise(CLUSTER, 1) }],
    [1, { kind: 'data', bytes: noise(CLUSTER, 2) }],
  ]),
})

function imageIn(t: Test, damage: (bytes: Buffer) => void = () => {}): string {
  const file = join(tempFolder(t), 'disk.qcow2')
  const bytes = IMAGE.bytes()
  damage(bytes)
  writeFileSync(file, bytes)
  return file
}

/** Makes the file so large that work on it gets a thread. What follows the image is not in use. */
function enlarged(image: string): string {
  execFileSync('fallocate', ['-o', String(statSync(image).size), '-l', '64M', image])
  return image
}

t.test('a check finds the same in both threads', async t => {
  const image = imageIn(t, bytes => void bytes.writeBigUInt64BE(0n, IMAGE.l2EntryAt(1)))
  const chain = openChain(image, { describe: 'file' })
  const setup = { layer: chain.layers[0], repair: undefined, obstacle: undefined }
  const here = await runCheck(setup, {})
  t.equal(here.after.leaks, 1)
  t.same(await runApart('check', setup), here)
  closeChain(chain)
})

t.test('a check that is stopped says what it has found', async t => {
  const image = imageIn(t, bytes => void bytes.writeBigUInt64BE(1n << 9n, IMAGE.l2EntryAt(1)))
  const chain = openChain(image, { describe: 'file' })
  const stop = new SharedArrayBuffer(4)
  new Int32Array(stop)[0] = 1
  const setup = { layer: chain.layers[0], repair: undefined, obstacle: undefined, stop }
  const found = await runApart('check', setup)
  t.match(found, { isStopped: true, after: { checkErrors: 1 } })
  t.match(found.after.findings, [{ message: /not aligned/ }])
  closeChain(chain)
})

t.test('a check ends at once when nobody wants it any more', async t => {
  const image = imageIn(t)
  const chain = openChain(image, { describe: 'file' })
  const setup = { layer: chain.layers[0], repair: undefined, obstacle: undefined }
  const cancel = new AbortController()
  const checking = runApart('check', setup, undefined, cancel.signal)
  // The thread has not started yet.
  cancel.abort()
  await t.rejects(checking, { name: 'MountError' })
  await t.rejects(runApart('check', setup, undefined, cancel.signal), { name: 'MountError' })
  closeChain(chain)
})

t.test('errors keep their kind', async t => {
  const image = imageIn(t)
  const chain = openChain(image, { describe: 'file' })
  const setup = { layer: chain.layers[0], repair: undefined, obstacle: undefined }
  writeFileSync(image, 'no image any more')
  await t.rejects(runApart('check', setup), { name: 'ImageError', code: 'NOT_AN_IMAGE' })
  closeChain(chain)
  const errors = [
    new ImageError('CORRUPT', 'what', { path: 'a', offset: 5, hint: 'do' }),
    new SnapshotLimit('too many', { path: 'a', hint: 'delete one' }),
    new SystemError('pread', 5, 'a'),
  ]
  for (const error of errors) {
    const sent = sentError(error)
    const received = receivedError(structuredClone(sent as NonNullable<typeof sent>))
    t.equal(received.constructor, error.constructor)
    t.same({ ...received, message: received.message }, { ...error, message: error.message })
  }
  t.equal(sentError(new TypeError('a bug')), undefined)
})

/** Waits for a command, and sends this process signals until then: the command first looks whether the image is mounted. */
async function signalled<T>(command: Promise<T>): Promise<T> {
  const timer = setInterval(() => process.kill(process.pid, 'SIGUSR1'), 1)
  try {
    return await command
  } finally {
    clearInterval(timer)
  }
}

t.test('a signal prints the progress of a check', async t => {
  const found = await signalled(runHere(check, [enlarged(imageIn(t))], '/'))
  t.match(found, { code: 0, stdout: /no errors found/, stderr: /^ +\d+\.\d %/ })
})

t.test('a signal prints the progress of each change of snapshots', async t => {
  const image = enlarged(imageIn(t))
  const names = () => listSnapshots(image).snapshots.map(({ name }) => name)
  for (const [args, after] of [
    [['create', image, 'ä'], ['ä']],
    [['revert', '--discard', image, 'ä'], ['ä']],
    [['delete', image, 'ä'], []],
  ] as const) {
    const changed = await signalled(runHere(snapshot, args, '/'))
    t.match(changed, { code: 0, stdout: '', stderr: /^ +\d+\.\d %/ }, args[0])
    t.same(names(), after)
  }
  t.match(await runHere(check, [image], '/'), { code: 0 })
})
