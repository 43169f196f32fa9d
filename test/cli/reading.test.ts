/** What map, compare and diff share: opening images, locks, passphrases, and what they refuse. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as compare } from '../../src/cli/compare.js'
import { run as diff } from '../../src/cli/diff.js'
import { run as map } from '../../src/cli/map.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { noise } from '../fixtures/model.js'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import { buildFixed } from '../fixtures/vpc-builder.js'
import { makeEncrypted } from '../peers/encrypted.js'
import { runHere } from '../support/command.js'
import { loop } from '../support/loop.js'
import { needs, needsRoot, tempFolder } from '../support/run.js'

const K = 1024
const IMAGE = buildImage({
  clusterBits: 12,
  sizeBytes: 64 * K,
  clusters: new Map<number, Cluster>([
    [0, { kind: 'data', bytes: noise(4 * K, 1) }],
    [9, { kind: 'data', bytes: noise(4 * K, 2) }],
  ]),
  snapshots: [{ name: 'one' }],
})

t.test('an image that a machine has open', async t => {
  const cwd = tempFolder(t)
  const image = join(cwd, 'disk.qcow2')
  IMAGE.write(image)
  const chain = openChain(image, { access: 'write', takesLocks: true })
  t.teardown(() => closeChain(chain))
  const inUse = /^vimgfs: .*disk\.qcow2: it is in use: .*read it as it is with -U: .*\n$/
  t.match(await runHere(map, ['disk.qcow2'], cwd), { code: 1, stdout: '', stderr: inUse })
  t.match(await runHere(diff, ['disk.qcow2', 'one'], cwd), { code: 1, stderr: inUse })
  t.match(await runHere(compare, ['disk.qcow2', 'disk.qcow2'], cwd), { code: 2, stderr: inUse })
  const torn = /^vimgfs: .*disk\.qcow2: another program has it open for writing.*\n$/
  t.match(await runHere(map, ['-U', 'disk.qcow2'], cwd), { code: 0, stderr: torn })
  const alike = await runHere(compare, ['-U', 'disk.qcow2', 'disk.qcow2'], cwd)
  t.match(alike, { code: 0, stderr: torn }, 'the same warning comes once')
})

t.test('encrypted images', needs('qemu-img'), async t => {
  const cwd = tempFolder(t)
  const image = { file: join(cwd, 'disk.qcow2'), format: 'qcow2', passphrase: 'secret' } as const
  await makeEncrypted(image, 2 ** 20, { format: 'luks' })
  writeFileSync(join(cwd, 'key'), 'secret\n')
  writeFileSync(join(cwd, 'wrong'), 'public\n')
  writeFileSync(join(cwd, 'zeros'), Buffer.alloc(2 ** 20))
  t.match(await runHere(map, ['--output=json', 'disk.qcow2'], cwd), { code: 0, stderr: '' })
  const words = ['-F', 'raw', 'disk.qcow2', 'zeros']
  const here = (...args: string[]) => runHere(compare, [...args, ...words], cwd)
  t.match(await here('--passphrase-file', 'key'), { code: 0, stdout: /identical/ })
  t.match(await here('--passphrase-file', 'wrong'), { code: 2, stderr: /passphrase is wrong/ })
  t.match(await here('--passphrase-file', 'none'), { code: 2, stderr: /none cannot be opened/ })
  t.match(await here(), { code: 2, stderr: /--passphrase-file/ })
})

t.test('words and options', async t => {
  const cwd = tempFolder(t)
  IMAGE.write(join(cwd, 'disk.qcow2'))
  const refused = async (args: string[], stderr: RegExp, code = 2) =>
    t.match(await runHere(map, args, cwd), { code, stdout: '', stderr }, args.join(' '))
  await refused([], /IMAGE is missing/)
  await refused(['a', 'b'], /"b" is one argument too many/)
  await refused(['--output=xml', 'disk.qcow2'], /--output takes human, json/)
  await refused(['--start-offset=-1', 'disk.qcow2'], /--start-offset/)
  await refused(['--max-length', 'much', 'disk.qcow2'], /--max-length takes a size/)
  await refused(['-f', 'vdi', 'disk.qcow2'], /-f takes/)
  await refused(['none'], /none: it cannot be opened: no such file/, 1)
  await refused(['none@one'], /none@one: it cannot be opened: no such file/, 1)
  await refused(['disk.qcow2@two'], /it has no snapshot "two"; it has "one"/, 1)
  await refused(['.'], /not a disk image/, 1)
  await refused(['-f', 'vmdk', 'disk.qcow2'], /disk\.qcow2: /, 1)
  t.match(await runHere(map, ['disk.qcow2@one'], cwd), { code: 0 })
  t.match(await runHere(diff, ['--output=xml', 'disk.qcow2', 'one'], cwd), { code: 2 })
})

t.test('vhd is vpc', async t => {
  const cwd = tempFolder(t)
  const sectors = new Map([[1, noise(512, 1)]])
  writeFileSync(join(cwd, 'disk'), buildFixed({ sizeBytes: 64 * K, sectors }))
  const { stdout } = await runHere(map, ['-f', 'vpc', '--output=json', 'disk'], cwd)
  t.equal((await runHere(map, ['-f', 'vhd', '--output=json', 'disk'], cwd)).stdout, stdout)
  t.equal(JSON.parse(stdout).length, 1)
})

t.test('files that an image names elsewhere', async t => {
  const [cwd, other] = [tempFolder(t), tempFolder(t)]
  writeFileSync(join(other, 'base.raw'), noise(64 * K, 3))
  const backing = { name: join(other, 'base.raw'), format: 'raw' }
  buildImage({ clusterBits: 12, sizeBytes: 64 * K, backing }).write(join(cwd, 'disk.qcow2'))
  const outside = { code: 1, stderr: /lies outside the image's folder; allow it with --allow-path/ }
  t.match(await runHere(map, ['disk.qcow2'], cwd), outside)
  const words = ['--allow-path', other, '-F', 'raw', 'disk.qcow2', join(other, 'base.raw')]
  t.match(await runHere(compare, words, cwd), { code: 0, stdout: 'Images are identical.\n' })
})

t.test('damaged tables: what comes before them is printed', async t => {
  const cwd = tempFolder(t)
  const bytes = IMAGE.bytes()
  bytes.writeBigUInt64BE(bytes.readBigUInt64BE(IMAGE.l2EntryAt(9)) + 512n, IMAGE.l2EntryAt(9))
  writeFileSync(join(cwd, 'disk.qcow2'), bytes)
  t.match(await runHere(map, ['--output=json', 'disk.qcow2'], cwd), {
    code: 1,
    stdout: /^\[\{ "start": 0, /,
    stderr: /^vimgfs: .*disk\.qcow2: an L2 entry maps a cluster at \d+, which is not aligned\n$/,
  })
  t.match(await runHere(diff, ['--output=json', 'disk.qcow2', 'one'], cwd), { code: 1 })
  t.match(await runHere(compare, ['disk.qcow2', 'disk.qcow2@one'], cwd), {
    code: 1,
    stdout: 'Content mismatch at offset 0!\n',
    stderr: '',
  })
  t.ok(readFileSync(join(cwd, 'disk.qcow2')).equals(bytes), 'nothing is written')
})

t.test('block devices', { ...needs('losetup'), ...needsRoot() }, async t => {
  const cwd = tempFolder(t)
  const raw = join(cwd, 'disk.raw')
  writeFileSync(raw, Buffer.concat([noise(64 * K, 1), Buffer.alloc(64 * K)]))
  const { device } = await loop(t, raw, { readOnly: true })
  const found = await runHere(compare, ['-f', 'raw', '-F', 'raw', device, 'disk.raw'], cwd)
  t.match(found, { code: 0, stdout: 'Images are identical.\n' })
  const mapped = await runHere(map, ['-f', 'raw', '--output=json', device], cwd)
  t.match(JSON.parse(mapped.stdout), [{ start: 0, length: 128 * K, data: true, offset: 0 }])
})
