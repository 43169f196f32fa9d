/** Several sources, one after the other, and what qemu-img makes of them. */
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as convert } from '../../src/cli/convert.js'
import { noise } from '../fixtures/model.js'
import { runHere } from '../support/command.js'
import { needs, run, tempFolder } from '../support/run.js'
import { qemuImg } from './qemu.js'

const K = 1024
const M = K * K

t.test('several sources', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const file = (name: string) => join(folder, name)
  // Its end lies within a sector, and within a cluster of the others.
  const odd = Buffer.alloc(M + 70_001)
  noise(200_000, 1).copy(odd, 900_000)
  writeFileSync(file('odd.raw'), odd)
  const disk = Buffer.alloc(2 * M + 512)
  noise(300_000, 2).copy(disk, 100_000)
  disk.fill('text ', 1_500_000)
  writeFileSync(file('disk.raw'), disk)
  const make = (...args: string[]) => qemuImg('convert', '-f', 'raw', ...args)
  await make('-c', '-O', 'qcow2', file('disk.raw'), file('packed.qcow2'))
  await make('-O', 'qcow2', file('disk.raw'), file('plain.qcow2'))
  await make('-O', 'vmdk', file('disk.raw'), file('disk.vmdk'))
  // The odd one is raw, which is found by its bytes.
  const names = ['odd.raw', 'packed.qcow2', 'odd.raw', 'plain.qcow2', 'disk.vmdk', 'packed.qcow2']
  const sources = names.map(file)
  await run('qemu-img', ['convert', '-O', 'raw', ...sources, file('theirs')])
  const theirs = readFileSync(file('theirs'))
  const here = (...args: string[]) => runHere(convert, args, folder)
  const done = { code: 0, stdout: '', stderr: '' }
  t.strictSame(await here('-O', 'raw', '--verify', ...names, 'ours'), done)
  t.ok(readFileSync(file('ours')).equals(theirs), 'raw')
  for (const args of [
    ['-O', 'qcow2'],
    ['-c', '-O', 'qcow2', '-o', 'cluster_size=2M'],
  ]) {
    t.strictSame(await here(...args, '--verify', '--force', ...names, 'ours'), done)
    await qemuImg('compare', '-f', 'qcow2', '-F', 'raw', file('ours'), file('theirs'))
  }
  writeFileSync(file('there'), '')
  truncateSync(file('there'), theirs.length + M)
  t.strictSame(await here('-n', '-O', 'raw', '--verify', ...names, 'there'), done)
  t.ok(readFileSync(file('there')).subarray(0, theirs.length).equals(theirs), 'into a file')

  truncateSync(file('plain.qcow2'), 500_000)
  const lost = await here('-O', 'raw', '--salvage', 'odd.raw', 'plain.qcow2', 'salvaged')
  const start = Math.ceil(odd.length / 512) * 512
  t.equal(lost.code, 3)
  const places = [...lost.stderr.matchAll(/: (\d+) bytes at (\d+) are zeros/g)]
  t.ok(places.length > 0 && places.every(([, , at]) => Number(at) >= start), lost.stderr)
  t.ok(readFileSync(file('salvaged')).subarray(0, odd.length).equals(odd))

  const into = await here('-O', 'raw', '--force', 'odd.raw', 'disk.vmdk', 'disk.vmdk')
  t.match(into, { code: 1, stderr: /would replace a file that it is made of/ })
})
