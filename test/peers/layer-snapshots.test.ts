/** The snapshots of backing layers: names, and bytes that qemu-img has too. */
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { unlockChain } from '../../src/image/opening/encryption.js'
import { catalogOf } from '../../src/image/catalog.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { firstDifference, openedImage, readAll } from '../support/image.js'
import { needs, run, tempFolder } from '../support/run.js'
import { makeEncrypted } from './encrypted.js'
import { convertedBy, qemuImg, qemuIo, randomWrites } from './qemu.js'

const M = 2 ** 20
const tools = needs('qemu-img', 'qemu-io')

t.test('external snapshots as libvirt names them', tools, async t => {
  const cwd = tempFolder(t)
  const create = (...args: string[]) =>
    run('qemu-img', ['create', '-q', '-f', 'qcow2', ...args], { cwd })
  await create('disk.qcow2', '1M')
  await create('-b', 'disk.qcow2', '-F', 'qcow2', 'disk.before-upgrade')
  await create('-b', 'disk.before-upgrade', '-F', 'qcow2', 'disk.after-upgrade')
  await create('-b', 'disk.after-upgrade', '-F', 'qcow2', 'disk.today')
  const { entries } = openedImage(t, join(cwd, 'disk.today'))
  t.same(
    entries.map(({ name }) => name),
    ['disk.raw', 'disk@disk.after-upgrade.raw', 'disk@disk.before-upgrade.raw', 'disk@disk.raw'],
  )
})

t.test('their bytes, through a chain of their own', tools, async t => {
  const cwd = tempFolder(t)
  const [root, base, middle, top] = ['root.raw', 'base.qcow2', 'base.img', 'top.qcow2'].map(name =>
    join(cwd, name),
  ) as [string, string, string, string]
  await run('qemu-img', ['create', '-q', '-f', 'raw', root, String(M)])
  await qemuIo(root, randomWrites(1, M, { cluster: 4096 }), ['-f', 'raw'])
  await qemuImg(
    'create',
    '-q',
    '-f',
    'qcow2',
    '-o',
    'cluster_size=4096',
    ...on(root, 'raw'),
    base,
    '2M',
  )
  const snapshots: Record<string, Buffer> = {}
  for (const [image, file, size] of [
    [base, 'top@base', 2 * M],
    [middle, 'top@base', 3 * M],
  ] as const) {
    if (image === middle)
      await qemuImg('create', '-q', '-f', 'qcow2', ...on(base, 'qcow2'), middle, '3M')
    for (const [index, tag] of ['a', 'b/c', `d${size}`].entries()) {
      await qemuIo(image, randomWrites(size + index, size, { cluster: 4096, count: 8 }))
      await qemuImg('snapshot', '-c', tag, image)
      snapshots[`${file}/${image}/${tag}`] = await convertedBy(image, String(index + 1))
    }
    await qemuIo(image, randomWrites(size + 9, size, { cluster: 4096, count: 8 }))
  }
  await qemuImg('create', '-q', '-f', 'qcow2', ...on(middle, 'qcow2'), top, '3M')
  await qemuImg('snapshot', '-c', 'a', top)
  const { entries, view, warnings } = openedImage(t, top)
  t.same(warnings, [])
  const shown = {
    'top@base@a~1.1.raw': snapshots[`top@base/${middle}/a`],
    'top@base@b%2Fc~1.2.raw': snapshots[`top@base/${middle}/b/c`],
    [`top@base@d${3 * M}.raw`]: snapshots[`top@base/${middle}/d${3 * M}`],
    'top@base@a~2.1.raw': snapshots[`top@base/${base}/a`],
    'top@base@b%2Fc~2.2.raw': snapshots[`top@base/${base}/b/c`],
    [`top@base@d${2 * M}.raw`]: snapshots[`top@base/${base}/d${2 * M}`],
  }
  t.same(
    entries.map(({ name }) => name),
    [
      'top.raw',
      'top@a.raw',
      'top@base~1.raw',
      'top@base~2.raw',
      'top@root.raw',
      ...Object.keys(shown),
    ],
  )
  for (const [name, bytes] of Object.entries(shown)) {
    t.equal(firstDifference(readAll(view(name)), bytes as Buffer), -1, name)
    const { kind, attributes } = entries.find(entry => entry.name === name)!
    t.equal(kind, 'snapshot')
    t.match(attributes, { layer: /^[12]$/, path: /base/, 'snapshot-id': /^[123]$/ })
  }
})

const on = (file: string, format: string): string[] => ['-b', file, '-F', format]

t.test('an encrypted layer', tools, async t => {
  const cwd = tempFolder(t)
  const [base, top] = [join(cwd, 'base.qcow2'), join(cwd, 'top.qcow2')] as [string, string]
  const passphrase = 'open sesame'
  const image = { file: base, format: 'qcow2' as const, passphrase }
  await makeEncrypted(image, M, { format: 'luks' })
  const secret = ['--object', `secret,id=s,data=${passphrase}`]
  const file = `driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=${base}`
  const options = [...secret, '--image-opts', file]
  await run('qemu-io', ['-c', 'write -q -P 0x5a 0 200k', ...options])
  await run('qemu-img', ['snapshot', ...secret, '--image-opts', '-c', 'then', file])
  await run('qemu-io', ['-c', 'write -q -P 0x77 0 1M', ...options])
  await qemuImg('create', '-q', '-u', '-f', 'qcow2', ...on(base, 'qcow2'), top, '1M')
  const opened = openChain(top)
  t.teardown(() => closeChain(opened))
  const chain = await unlockChain(opened, async () => [Buffer.from(passphrase)])
  const views = new ViewSet(chain.layers, { metadataBytes: M, clusterBytes: M })
  const entry = catalogOf(chain).entries.find(({ name }) => name === 'top@base@then.raw')!
  const wanted = Buffer.alloc(M)
  wanted.fill(0x5a, 0, 200 * 1024)
  t.equal(firstDifference(readAll(views.viewOf(entry)), wanted), -1)
  rmSync(top)
})
