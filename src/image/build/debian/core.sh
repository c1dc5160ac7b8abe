# Makes GRUB's core image for a PC BIOS, with the program of the very packages that were unpacked into $1.
set -eu
linker=usr/lib64/ld-linux-x86-64.so.2
# Before Debian 13 the dynamic linker's package had it outside /usr.
[ -e "$1/$linker" ] || linker=lib64/ld-linux-x86-64.so.2
printf %s "$config" >"$1/early.cfg"
chroot "$1" "/$linker" /usr/bin/grub-mkimage --format=i386-pc --prefix=/boot/grub --config=/early.cfg \
    --output=/core.img biosdisk part_gpt ext2 search search_fs_uuid configfile normal linux serial terminal
