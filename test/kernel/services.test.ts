/** The log of a mount that a service makes, and its rotation. */
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { attemptIn, HERE, letGo, MAIN, mountFolder, sampleImage } from '../support/mount.js'
import { needs, needsRoot } from '../support/run.js'

const ROTATION = fileURLToPath(new URL('../../share/logrotate.d/vimgfs', import.meta.url))

/** Runs a script where /var/log is empty, and neither a syslog nor a journal listens. */
const quietly = (script: readonly string[]) =>
  attemptIn(HERE, 'unshare', [
    ...['--mount', '--propagation', 'private', 'sh', '-e', '-c'],
    [
      letGo(),
      'mount -t tmpfs -o mode=755 none /var/log',
      '[ ! -e /dev/log ] || mount --bind /dev/null /dev/log',
      'mkdir -p /run/systemd',
      'mount -t tmpfs none /run/systemd',
      `vimgfs() { ${process.execPath} ${MAIN} "$@"; }`,
      'unset JOURNAL_STREAM',
      ...script,
    ].join('\n'),
  ])

t.test('logrotate', { ...needsRoot(), ...needs('logrotate') }, async t => {
  const folder = mountFolder(t)
  const config = join(folder, '..', 'rotation')
  copyFileSync(ROTATION, config)
  const { code, stdout, stderr } = await quietly([
    `vimgfs mount -q ${sampleImage(t)} ${folder}`,
    `chmod 644 ${config}; chown 0:0 ${config}`,
    `logrotate --force --state ${folder}/../state ${config}`,
    `vimgfs umount ${folder}`,
    'echo old; cat /var/log/vimgfs.log.1; echo new; cat /var/log/vimgfs.log',
  ])
  t.equal(code, 0, stderr)
  const [old, fresh] = stdout.split('new\n')
  t.match(old, '"msg":"mounted"')
  t.notMatch(old, '"msg":"unmounted"')
  t.match(fresh, '"msg":"unmounted"', 'the server has opened the new file')
})

t.test('under systemd', { ...needsRoot(), ...needs('perl') }, async t => {
  const folder = mountFolder(t)
  const journal = '/run/systemd/journal/socket'
  const listen = `use Socket; socket(S, AF_UNIX, SOCK_DGRAM, 0); bind(S, sockaddr_un("${journal}")) or die;
    open(R, ">", "/var/log/ready"); close(R); $| = 1;
    do { recv(S, $text, 65536, 0); print $text } until $text =~ /"unmounted"/`
  const { code, stdout, stderr } = await quietly([
    'mkdir /run/systemd/journal',
    `perl -e '${listen}' & journal=$!`,
    'for i in $(seq 1000); do [ ! -e /var/log/ready ] || break; sleep 0.01; done',
    'stream=$(stat -c %d:%i /var/log/ready)',
    // A terminal of a desktop has the variable, and another standard error.
    `JOURNAL_STREAM=$stream vimgfs mount -q ${sampleImage(t)} ${folder}`,
    `vimgfs umount ${folder}`,
    'rm /var/log/vimgfs.log',
    `JOURNAL_STREAM=$stream vimgfs mount ${sampleImage(t)} ${folder} 2> /var/log/ready`,
    `vimgfs umount ${folder}; wait $journal`,
    '[ ! -e /var/log/vimgfs.log ]',
    // In front, standard error is the stream to the journal.
    'exec 2> /var/log/stream',
    `JOURNAL_STREAM=$(stat -c %d:%i /var/log/stream) vimgfs mount -f -q ${sampleImage(t)} ${folder} & server=$!`,
    `for i in $(seq 1000); do ! grep -q ' ${folder} ' /proc/self/mountinfo || break; sleep 0.01; done`,
    `vimgfs umount ${folder}; wait $server; cat /var/log/stream`,
  ])
  t.equal(code, 0, stderr)
  t.match(stdout, '(log: journalctl -t vimgfs)')
  t.match(stdout, /^PRIORITY=6\nSYSLOG_IDENTIFIER=vimgfs\nMESSAGE=\{.*"msg":"unmounted"/m)
  t.match(stdout, /^<6>\{.*"msg":"mounted"/m)
})
