/** Images of terabytes: time and memory are bounded. */
import { closeSync, ftruncateSync, openSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import { repairQcow2 } from '../../src/formats/qcow2/repair.js'
import { WritableFileStore } from '../../src/io/store.js'
import { attempt, needs, tempFolder } from '../support/run.js'
import { qemuImg } from './qemu.js'

const T = 2 ** 40
/** More clusters than one window has. */
const SIZE = 600 * 2 ** 30
/** What a check may take: 64 MiB, and what the process needs to take it. */
const MAX_GROWTH_BYTES = 96 * 2 ** 20

t.test('600 GiB, all of it allocated', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', image, String(SIZE))
  const before = process.resourceUsage().maxRSS * 1024
  const fd = openSync(image, 'r+')
  t.teardown(() => closeSync(fd))
  const store = new WritableFileStore(image, fd, BigInt64Array.of(BigInt(statSync(image).size)))
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0, allocatedClusters: SIZE / 65536 })
  // All blocks are lost.
  const header = Buffer.alloc(8)
  readSync(fd, header, 0, 8, 48)
  store.write(Buffer.alloc(8192), 0, 8192, Number(header.readBigUInt64BE()))
  const { after } = repairQcow2(store, 'all')
  t.match(after, { corruptions: 0, leaks: 0, checkErrors: 0 })
  t.ok(process.resourceUsage().maxRSS * 1024 - before < MAX_GROWTH_BYTES, 'memory')
  const { code } = await attempt('qemu-img', ['check', '-f', 'qcow2', image])
  t.equal(code, 0)
})

t.test('a file of 4 TiB with little in it', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', image, '1G')
  const fd = openSync(image, 'r+')
  t.teardown(() => closeSync(fd))
  ftruncateSync(fd, 4 * T)
  const before = process.resourceUsage().maxRSS * 1024
  const store = new WritableFileStore(image, fd, BigInt64Array.of(BigInt(4 * T)))
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0, checkErrors: 0 })
  t.ok(process.resourceUsage().maxRSS * 1024 - before < MAX_GROWTH_BYTES, 'memory')
})
