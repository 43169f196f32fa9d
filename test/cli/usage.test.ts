/** `vimgfs usage`: its table, its JSON, its page, damaged images and chains. */
import fs from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as usage } from '../../src/cli/usage.js'
import { usagePage } from '../../src/cli/usage-page.js'
import { DiskMapBuilder } from '../../src/formats/disk-map.js'
import { Owners } from '../../src/formats/qcow2/usage/owners.js'
import { receivedUsage } from '../../src/control/received-usage.js'
import { usageAt } from '../../src/image/usage-run.js'
import { runHere } from '../support/command.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'

const HARMFUL = '<script>alert(1)</script>'
const qemuImg = (...args: string[]) => run('qemu-img', args)
const qemuIo = (image: string, ...commands: string[]) =>
  run('qemu-io', [...commands.flatMap(command => ['-c', command]), image])

/** An image with data, compressed data, zeros and two snapshots, and another one on it. */
async function images(folder: string) {
  const [base, top] = [join(folder, 'base.qcow2'), join(folder, 'top.qcow2')]
  await qemuImg('create', '-q', '-f', 'qcow2', base, '64M')
  await qemuIo(base, 'write 0 1M', 'write 10M 2M')
  await qemuImg('snapshot', '-c', 's1', base)
  await qemuIo(base, 'write 0 512k', 'write -z 30M 1M', 'write -c 20M 64k')
  await qemuImg('snapshot', '-c', HARMFUL.padEnd(100, 'x'), base)
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top)
  await qemuIo(top, 'write 0 256k')
  return { base, top }
}

t.test('tables, JSON and the page', needs('qemu-img', 'qemu-io'), async t => {
  const folder = tempFolder(t)
  const { base, top } = await images(folder)

  const human = await runHere(usage, [base, 's1', '--id', '2'], folder)
  t.equal(human.code, 0, human.stderr)
  t.same(
    human.stdout.split('\n').filter(line => [...line].length > 80),
    [],
    'fits 80 columns',
  )
  t.match(human.stdout, /alone holds\nthe disk .*\n1 s1 .*640 KiB\n2 <script>.*…/)
  t.match(human.stdout, /compression saves 63.5 KiB of 64 KiB/)

  const json = JSON.parse((await runHere(usage, ['--json', base], folder)).stdout)
  t.match(json, {
    filename: base,
    format: 'qcow2',
    diskBytes: 64 * 2 ** 20,
    compression: { units: 1, packedBytes: 512, gainBytes: 65024 },
    leakedBytes: 0,
    snapshots: [{ id: '1', name: 's1', exclusiveBytes: 640 * 1024 }, { id: '2' }],
    problems: [],
  })
  const chain = JSON.parse((await runHere(usage, ['--json', top], folder)).stdout)
  t.match(chain, {
    heldBytes: 256 * 1024,
    usedBytes: 256 * 1024,
    layersBelow: [{ filename: base, heldBytes: 3136 * 1024, usedBytes: (3136 - 256) * 1024 }],
  })

  const page = join(folder, 'page.html')
  fs.writeFileSync(page, 'old')
  const written = await runHere(usage, ['--html', page, top], folder)
  t.equal(written.code, 0, written.stderr)
  t.match(fs.readFileSync(page, 'utf8'), /^<!doctype html>.*from a layer below.*<\/html>\n$/s)
  const before = fs.readFileSync(base)
  for (const image of [base, top]) {
    const refused = await runHere(usage, ['--html', base, image], folder)
    t.equal(refused.code, 1)
    t.match(refused.stderr, /would replace a file that it is made of/)
  }
  t.same(fs.readFileSync(base), before, 'a slip does not replace the image')

  const missing = await runHere(usage, [base, 'nope'], folder)
  t.match(missing, { code: 1, stderr: /it has no snapshot "nope"/ })
  t.match(await runHere(usage, [`${base}@s1`], folder), { code: 2 })

  await t.test('in a browser', needs('chromium'), async t => {
    await runHere(usage, ['--html', page, base, 's1'], folder)
    const text = fs.readFileSync(page, 'utf8')
    t.notMatch(text, /<script/i)
    t.equal(text.split('&lt;script&gt;alert(1)&lt;/script&gt;').length, 4, 'key, bar and table')
    const shown = await attempt('chromium', [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--enable-logging=stderr',
      `--user-data-dir=${join(folder, 'profile')}`,
      '--dump-dom',
      `file://${page}`,
    ])
    t.equal(shown.code, 0, shown.stderr)
    t.notMatch(shown.stderr, /CONSOLE/)
    t.match(shown.stdout, /<svg[^>]* role="img" aria-label="Map of the disk: data /)
    t.equal(shown.stdout.match(/<table>/g)?.length, 3)
  })

  await t.test('damage', async t => {
    const damaged = join(folder, 'damaged.qcow2')
    fs.copyFileSync(base, damaged)
    const fd = fs.openSync(damaged, 'r+')
    const word = Buffer.alloc(8)
    fs.readSync(fd, word, 0, 8, 40)
    fs.readSync(fd, word, 0, 8, Number(word.readBigUInt64BE()))
    const l2 = Number(word.readBigUInt64BE() & 0xfffffffffffe00n)
    word.writeBigUInt64BE((1n << 63n) | 0x12340000000000n)
    fs.writeSync(fd, word, 0, 8, l2 + 8)
    fs.closeSync(fd)
    const told = await runHere(usage, [damaged], folder)
    t.equal(told.code, 0)
    t.match(told.stderr, /^vimgfs: .*not exact: 1 entries of its tables[^\n]*check says more\n$/)
    t.match(told.stdout, /leaked: nothing uses it +64 KiB/)
  })

  await t.test('what a server says is judged', async t => {
    const sent = async () =>
      JSON.parse(JSON.stringify(await usageAt(top, {}, { names: [], mapCells: 16 }, () => {})))
    t.match(receivedUsage(await sent()), { layers: [{ path: top }, { path: base }] })
    for (const wrong of [
      null,
      {},
      { ...(await sent()), map: { cellBytes: -1 } },
      { ...(await sent()), layers: [] },
    ]) {
      t.throws(() => receivedUsage(wrong), /does not understand/)
    }
  })
})

t.test('other formats', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const raw = join(folder, 'disk.raw')
  fs.writeFileSync(raw, Buffer.alloc(4096, 1))
  fs.truncateSync(raw, 2 ** 20)
  const sparse = JSON.parse((await runHere(usage, ['--json', raw], folder)).stdout)
  t.match(sparse, { format: 'raw', fileBytes: 2 ** 20, heldBytes: 4096, tableBytes: 0 })
  t.notOk('snapshots' in sparse)
  const vmdk = join(folder, 'disk.vmdk')
  await qemuImg('convert', '-O', 'vmdk', raw, vmdk)
  t.match((await runHere(usage, [vmdk], folder)).stdout, /data of the disk +64 KiB\nall tables/)
  t.match(await runHere(usage, [vmdk, 's1'], folder), {
    code: 1,
    stderr: /no figures for snapshots/,
  })
})

t.test('windows: the same figures as in one', async t => {
  const counts = [0, 1, 2, 3, 2, 1, 0, 1]
  const blocks = {
    perSlice: 2,
    slice: (cluster: number) => Buffer.from(counts.slice(cluster, cluster + 2)),
    read: (slice: Buffer, index: number) => slice[index] ?? 0,
  }
  const totals = [8, 4, 2].map(windowClusters => {
    const owners = new Owners(8, Uint8Array.of(0, 0, 1, 1), windowClusters)
    for (let first = 0; first < 8; first = owners.end) {
      owners.begin(first)
      owners.refer(1, 3, 1, 0x20000000)
      owners.refer(2, 1, 4, 0x20000000)
      owners.refer(3, 2, 3, 0x20000000)
      owners.referCommon(5, 1)
      owners.sumUp(blocks as never, 8, 0xffff)
    }
    const { referenced, exclusive, chosenReferenced, chosenExclusive } = owners
    return { totals: owners.totals, referenced, exclusive, chosenReferenced, chosenExclusive }
  })
  t.same(totals[0]?.exclusive, [0, 0, 1, 0])
  t.match(totals[0], { chosenReferenced: 4, chosenExclusive: 3, totals: { leaked: 1, free: 2 } })
  t.same(totals[1], totals[0])
  t.same(totals[2], totals[0])
})

t.test('a map of a small disk, and names in a page', async t => {
  const map = new DiskMapBuilder(1500, 2)
  map.add('data', 0, 600, 2)
  map.add('compressed', 600, 5000)
  const { cellBytes, data, compressed, sharedWith } = map.finish()
  t.same(
    { cellBytes, data, compressed, sharedWith },
    {
      cellBytes: 1024,
      data: [600, 0],
      compressed: [424, 476],
      sharedWith: [2, 0],
    },
  )
  const layer = {
    format: 'raw',
    fileBytes: 1,
    allocatedBytes: 1,
    tableBytes: 0,
    heldBytes: 1,
    usedBytes: 1,
  }
  const page = usagePage(
    HARMFUL,
    { diskBytes: 1, layers: [{ path: HARMFUL, ...layer }], snapshots: [], problems: [HARMFUL] },
    [],
  )
  t.notMatch(page, /<script/)
})
